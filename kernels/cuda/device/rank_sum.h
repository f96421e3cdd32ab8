// The kernel behind kernels/cuda/rank_sum.h. A thread adds kWidth neighbours of one row, rank after
// rank: the order is the ranks', whatever the launch looks like.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

template <int kWidth>
struct RankSum {
  static_assert(kWidth == 1 || kWidth == 4);
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  struct Params {
    const float* gathered = nullptr;
    int64_t rank_stride = 0;
    int64_t row_stride = 0;
    const float* own = nullptr;
    int64_t own_stride = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    int64_t rows = 0;
    int64_t columns = 0;  // in units of kWidth
    int ranks = 1;
    int own_rank = -1;
    FloatType type = FloatType::kF32;
  };

  static QSERVE_DEVICE void Run(const Params& p) {
    const int64_t unit = int64_t{BlockX()} * kThreads + ThreadId();
    if (unit >= p.rows * p.columns) return;
    const int64_t row = unit / p.columns;
    const int64_t column = unit % p.columns * kWidth;
    float sum[kWidth];
    Load(p, 0, row, column, sum);
    for (int rank = 1; rank < p.ranks; ++rank) {
      float next[kWidth];
      Load(p, rank, row, column, next);
      QSERVE_UNROLL
      for (int i = 0; i < kWidth; ++i) sum[i] += next[i];
    }
    Store(p, row * p.out_stride + column, sum);
  }

 private:
  static QSERVE_DEVICE void Load(const Params& p, int rank, int64_t row, int64_t column,
                                 float (&values)[kWidth]) {
    const float* from = rank == p.own_rank
                            ? p.own + row * p.own_stride + column
                            : p.gathered + rank * p.rank_stride + row * p.row_stride + column;
    if constexpr (kWidth == 1) {
      values[0] = *from;
    } else {
      const Vec16 v = Load16(from);
      values[0] = FloatOf(v.x);
      values[1] = FloatOf(v.y);
      values[2] = FloatOf(v.z);
      values[3] = FloatOf(v.w);
    }
  }

  static QSERVE_DEVICE void Store(const Params& p, int64_t at, const float (&values)[kWidth]) {
    if (p.type == FloatType::kF32) {
      float* to = static_cast<float*>(p.out) + at;
      if constexpr (kWidth == 1) {
        *to = values[0];
      } else {
        Store16(to, {BitsOf(values[0]), BitsOf(values[1]), BitsOf(values[2]), BitsOf(values[3])});
      }
      return;
    }
    uint16_t* to = static_cast<uint16_t*>(p.out) + at;
    QSERVE_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      to[i] = p.type == FloatType::kF16 ? FloatToHalfBits(values[i]) : FloatToBf16Bits(values[i]);
    }
  }
};

}  // namespace qserve::kernels::cuda
