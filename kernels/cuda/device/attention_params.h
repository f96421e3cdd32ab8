// What a launch of attention_kernel.h is given, and the part of its arithmetic that the merging of
// parts (attention_combine.h) shares.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attention_item.h"
#include "kernels/cuda/device/simt.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

struct AttentionParams {
  const uint16_t* q = nullptr;  // fp16 or bf16, aligned to 16 bytes
  int64_t q_stride = 0;         // a multiple of 8
  FloatType q_type = FloatType::kF16;
  float scale_log2e = 0;
  int32_t window = 0;  // 0: none
  int32_t heads = 0;
  int32_t group = 0;  // query heads of a kv head
  const uint8_t* pages = nullptr;
  int64_t page_bytes = 0;
  const int32_t* tables = nullptr;
  const AttentionItem* items = nullptr;
  const int32_t* item_count = nullptr;
  float* parts = nullptr;                // [parts][heads][head_dim]
  float* part_weights = nullptr;         // [parts][heads] pairs of maximum and sum
  const int32_t* first_parts = nullptr;  // [rows]
};

// Merging with nothing yet has a maximum of -infinity on both sides: exp2(-infinity) then, not NaN.
QSERVE_DEVICE float SoftmaxShift(float max) { return max == -__builtin_inff() ? 0.0f : max; }

}  // namespace qserve::kernels::cuda
