// What a linear's kernel is given: plain device pointers and sizes. Filled by
// kernels/cuda/linear.cu and read by device/linear_*.h.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qserve::kernels::cuda {

struct LinearParams {
  // The weight, as kernels/quant/gpu_weight.h orders it; what a format lacks is null.
  const uint8_t* tiles = nullptr;
  const uint8_t* groups = nullptr;
  const float* scale = nullptr;
  const float* scaled_zero = nullptr;
  const float* bias = nullptr;
  int32_t n = 0;
  int32_t row_tiles = 0;
  int32_t k_tiles = 0;

  // Activations: m rows of k_tiles * 128 bytes that are int8 or fp16, `x_units` * 16 bytes apart.
  int32_t m = 0;
  const uint8_t* x = nullptr;
  uint32_t x_units = 0;
  const float* x_scale = nullptr;
  const int32_t* x_row_sum = nullptr;

  // [m, n]
  void* out = nullptr;
  int64_t out_stride = 0;
  FloatType out_type = FloatType::kF32;
  bool out_aligned = false;  // every fourth element of every row can be stored with its three next

  // The grid: x = row_blocks * token_blocks, y = splits of K. Blocks of `token_group` neighbouring
  // token blocks follow one another over all row blocks.
  int32_t row_blocks = 0;
  int32_t token_blocks = 0;
  int32_t token_group = 1;
  // Splits have split_k_tiles K tiles each, the first longer_splits of them one more.
  int32_t splits = 1;
  int32_t split_k_tiles = 0;
  int32_t longer_splits = 0;
  // With several splits: int32 sums of each block's tile and a counter of arrivals per tile. Both
  // are zero before a launch and after it.
  int32_t* partial_sums = nullptr;
  uint32_t* arrivals = nullptr;
};

}  // namespace qserve::kernels::cuda
