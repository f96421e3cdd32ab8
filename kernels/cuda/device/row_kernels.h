// The row-wise kernels, see kernels/cuda/rows.h: a block a row, the row in its registers. Rows that
// are copied alone share blocks' columns instead.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row_chunks.h"
#include "kernels/cuda/device/row_math.h"
#include "kernels/cuda/device/row_reduce.h"
#include "kernels/cuda/device/simt.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

// Elements of `to` from another matrix's rows or from a table's. Grid: {rows, columns / 2048}.
struct CopyRowsKernel {
  struct Params {
    const uint8_t* from = nullptr;
    int64_t from_stride = 0;
    uint8_t* to = nullptr;
    int64_t to_stride = 0;
    int64_t table_rows = 0;              // of `from`, if it is a table
    const int32_t* token_ids = nullptr;  // null: row r is copied to row r
    const int32_t* sampled_ids = nullptr;
    int32_t first_id = 0;
    int32_t cols = 0;
    FloatType from_type = FloatType::kF32;
    FloatType to_type = FloatType::kF32;
    bool aligned = false;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static QSERVE_DEVICE void Run(const Params& p) {
    const int first = kGroup * (BlockY() * kThreads + ThreadId());
    if (first >= p.cols) return;
    int64_t row = BlockX();
    bool present = true;
    if (p.token_ids != nullptr) {
      const int32_t given = p.token_ids[row];
      const int32_t id = given >= 0 ? given : p.sampled_ids[~given];
      row = static_cast<int64_t>(id) - p.first_id;
      present = row >= 0 && row < p.table_rows;
    }
    float x[kGroup] = {};
    if (present) {
      LoadGroup(p.from_type, RowBytes(p.from, p.from_type, row, p.from_stride), first, p.cols,
                p.aligned, x);
    }
    StoreGroup(p.to_type, RowBytes(p.to, p.to_type, BlockX(), p.to_stride), first, p.cols,
               p.aligned, x);
  }
};

// residual += delta. Grid: {rows, columns / 2048}.
template <FloatType kType>
struct AddRowsKernel {
  struct Params {
    uint8_t* residual = nullptr;
    int64_t residual_stride = 0;
    const uint8_t* delta = nullptr;
    int64_t delta_stride = 0;
    int32_t cols = 0;
    bool aligned = false;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static QSERVE_DEVICE void Run(const Params& p) {
    const int first = kGroup * (BlockY() * kThreads + ThreadId());
    if (first >= p.cols) return;
    uint8_t* residual = RowBytes(p.residual, kType, BlockX(), p.residual_stride);
    float x[kGroup], y[kGroup];
    LoadGroup<kType>(residual, first, p.cols, p.aligned, x);
    LoadGroup<kType>(RowBytes(p.delta, kType, BlockX(), p.delta_stride), first, p.cols, p.aligned,
                     y);
    QSERVE_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] += y[i];
    StoreGroup<kType>(residual, first, p.cols, p.aligned, x);
  }
};

template <FloatType kType, int kBlockThreads, int kChunks>
struct NormKernel {
  struct Params {
    uint8_t* residual = nullptr;
    int64_t residual_stride = 0;
    const uint8_t* delta = nullptr;  // or null; then the residual is only read
    int64_t delta_stride = 0;
    const float* gain = nullptr;
    const int32_t* rows = nullptr;  // or null
    float epsilon = 0;
    bool aligned = false;
    Activation out;
  };
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1024 / kBlockThreads;
  static constexpr int64_t kSharedBytes = 4 * (32 + kActivationRowScratch);

  static QSERVE_DEVICE void Run(const Params& p) {
    auto* scratch = reinterpret_cast<uint32_t*>(SharedMemory());
    const int cols = static_cast<int>(p.out.cols);
    const int64_t row = p.rows != nullptr ? p.rows[BlockX()] : BlockX();
    float x[kChunks][kGroup];
    LoadAndAdd(p, row, cols, x);
    float squares = 0;
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) squares = Fma(x[chunk][i], x[chunk][i], squares);
    }
    const float total =
        ReduceBlock<kThreads, AddFloats>(squares, 0.0f, reinterpret_cast<float*>(scratch));
    const float mean_square = Divide(total, static_cast<float>(cols));
    const float inverse = Divide(1.0f, SquareRoot(mean_square + p.epsilon));
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = GroupColumn<kThreads>(chunk);
      float gain[kGroup] = {};
      if (first < cols) LoadGroup<FloatType::kF32>(p.gain, first, cols, true, gain);
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) x[chunk][i] = (x[chunk][i] * inverse) * gain[i];
    }
    WriteActivationChunks<kThreads, kChunks>(p.out, BlockX(), x, scratch + 32);
  }

 private:
  // The row, with delta added and written back, as it is rounded; 0 beyond its end.
  static QSERVE_DEVICE void LoadAndAdd(const Params& p, int64_t row, int cols,
                                       float (&x)[kChunks][kGroup]) {
    uint8_t* residual = RowBytes(p.residual, kType, row, p.residual_stride);
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      LoadGroup<kType>(residual, GroupColumn<kThreads>(chunk), cols, p.aligned, x[chunk]);
    }
    if (p.delta == nullptr) return;
    const uint8_t* delta = RowBytes(p.delta, kType, row, p.delta_stride);
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = GroupColumn<kThreads>(chunk);
      float y[kGroup];
      LoadGroup<kType>(delta, first, cols, p.aligned, y);
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        x[chunk][i] = internal::Widen<kType>(internal::Narrow<kType>(x[chunk][i] + y[i]));
      }
      if (first < cols) StoreGroup<kType>(residual, first, cols, p.aligned, x[chunk]);
    }
  }
};

template <FloatType kType, int kBlockThreads, int kChunks>
struct SiluMulKernel {
  struct Params {
    const uint8_t* gate_up = nullptr;
    int64_t stride = 0;
    bool gate_aligned = false;
    bool up_aligned = false;
    Activation out;
  };
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1024 / kBlockThreads;
  static constexpr int64_t kSharedBytes = 4 * kActivationRowScratch;

  static QSERVE_DEVICE void Run(const Params& p) {
    const int cols = static_cast<int>(p.out.cols);
    const uint8_t* gate = RowBytes(p.gate_up, kType, BlockX(), p.stride);
    const uint8_t* up = gate + static_cast<int64_t>(cols) * ElementBytes(kType);
    float x[kChunks][kGroup];
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = GroupColumn<kThreads>(chunk);
      float y[kGroup];
      LoadGroup<kType>(gate, first, cols, p.gate_aligned, x[chunk]);
      LoadGroup<kType>(up, first, cols, p.up_aligned, y);
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const float g = x[chunk][i];
        x[chunk][i] = Divide(g, 1.0f + Exponential(-g)) * y[i];
      }
    }
    WriteActivationChunks<kThreads, kChunks>(p.out, BlockX(), x,
                                             reinterpret_cast<uint32_t*>(SharedMemory()));
  }
};

}  // namespace qserve::kernels::cuda
