// The kernel behind kernels/cuda/float_linear.h: a block computes a tile of 64 x 64 outputs, a
// thread 4 x 4 of them, from slices of 16 columns in shared memory. No tensor instructions: those
// for fp32 would round the inputs.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

template <FloatType kType>
struct FloatLinearKernel {
  static constexpr int kTile = 64;
  static constexpr int kSlice = 16;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  // Padded, so that what a warp stores at a time is spread over the banks.
  static constexpr int kStride = kTile + 4;
  static constexpr int64_t kSharedBytes = 2 * kSlice * kStride * int64_t{sizeof(float)};

  struct Params {
    const void* weight = nullptr;  // [n][k]
    const float* bias = nullptr;   // [n] or null
    const float* x = nullptr;      // [m][x_stride]
    int64_t x_stride = 0;
    void* out = nullptr;  // [m][out_stride] of out_type
    int64_t out_stride = 0;
    FloatType out_type = FloatType::kF32;
    int64_t m = 0;
    int64_t n = 0;
    int64_t k = 0;
  };

  static QSERVE_DEVICE void Run(const Params& p) {
    auto* const xs = reinterpret_cast<float*>(SharedMemory());  // [kSlice][kStride]
    float* const ws = xs + kSlice * kStride;                    // likewise
    const int64_t row = int64_t{BlockX()} * kTile, column = int64_t{BlockY()} * kTile;
    const int m0 = ThreadId() / 16 * 4, n0 = ThreadId() % 16 * 4;
    float sums[4][4] = {};
    for (int64_t k = 0; k < p.k; k += kSlice) {
      Load(p, row, column, k, xs, ws);
      SyncThreads();
      // Beyond the last column the slices hold zeros, which change no sum but the sign of a zero.
      QSERVE_UNROLL
      for (int i = 0; i < kSlice; ++i) {
        float a[4], b[4];
        Read4(xs + i * kStride + m0, a);
        Read4(ws + i * kStride + n0, b);
        QSERVE_UNROLL
        for (int r = 0; r < 4; ++r) {
          QSERVE_UNROLL
          for (int c = 0; c < 4; ++c) sums[r][c] = Fma(a[r], b[c], sums[r][c]);
        }
      }
      SyncThreads();
    }
    QSERVE_UNROLL
    for (int r = 0; r < 4; ++r) {
      QSERVE_UNROLL
      for (int c = 0; c < 4; ++c) Store(p, row + m0 + r, column + n0 + c, sums[r][c]);
    }
  }

 private:
  static QSERVE_DEVICE void Read4(const float* shared, float (&values)[4]) {
    const Vec16 v = Load16(shared);
    values[0] = FloatOf(v.x);
    values[1] = FloatOf(v.y);
    values[2] = FloatOf(v.z);
    values[3] = FloatOf(v.w);
  }

  static QSERVE_DEVICE float WeightAt(const Params& p, int64_t at) {
    if constexpr (kType == FloatType::kF32) {
      return static_cast<const float*>(p.weight)[at];
    } else {
      const uint16_t bits = static_cast<const uint16_t*>(p.weight)[at];
      return kType == FloatType::kF16 ? HalfBitsToFloat(bits) : Bf16BitsToFloat(bits);
    }
  }

  // Columns [k, k + kSlice) of the tile's rows of x and of W, zeros outside; neighbouring threads
  // read neighbouring columns.
  static QSERVE_DEVICE void Load(const Params& p, int64_t row, int64_t column, int64_t k, float* xs,
                                 float* ws) {
    const int i = ThreadId() % kSlice;
    const bool inside = k + i < p.k;
    QSERVE_UNROLL
    for (int at = ThreadId() / kSlice; at < kTile; at += kThreads / kSlice) {
      xs[i * kStride + at] = inside && row + at < p.m ? p.x[(row + at) * p.x_stride + k + i] : 0.0f;
      ws[i * kStride + at] =
          inside && column + at < p.n ? WeightAt(p, (column + at) * p.k + k + i) : 0.0f;
    }
  }

  static QSERVE_DEVICE void Store(const Params& p, int64_t row, int64_t column, float sum) {
    if (row >= p.m || column >= p.n) return;
    if (p.bias != nullptr) sum += p.bias[column];
    const int64_t at = row * p.out_stride + column;
    if (p.out_type == FloatType::kF32) {
      static_cast<float*>(p.out)[at] = sum;
    } else {
      static_cast<uint16_t*>(p.out)[at] =
          p.out_type == FloatType::kF16 ? FloatToHalfBits(sum) : FloatToBf16Bits(sum);
    }
  }
};

}  // namespace qserve::kernels::cuda
