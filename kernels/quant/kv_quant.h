// How one token's key or value vector of one kv head is rounded for storage: the same function for
// every CPU kernel, for the quantizer's simulation and for tests of GPU kernels. No state, any
// thread.
//
// int4 and int8 (design "Arithmetic"): minimum = fp16(min x), scale = fp16((max x - min x) /
// levels), levels 15 or 255; code = clamp(round_to_nearest_even((x - minimum) * (1 / scale)), 0,
// levels) from the ROUNDED pair; x' = code * scale + minimum. A vector whose rounded scale is below
// 2^-22 (its values are equal as far as fp16 tells) has scale 0 and codes 0. Scale and minimum
// saturate at the largest fp16. fp16 and fp32 store the values themselves, fp16 rounded to nearest
// even.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qserve::kernels {

struct KvParameters {
  uint16_t scale_half = 0;    // as stored
  uint16_t minimum_half = 0;  // as stored
  float scale = 0;            // the stored values, exact
  float minimum = 0;
  float inverse = 0;  // 1 / scale, or 0 if scale is 0
};

// Largest code of a quantized format: 15 or 255. 0 for floating-point formats.
int KvLevels(KvFormat format);

// From the extremes of a vector. O(1).
KvParameters ChooseKvParameters(float min, float max, int levels);

// `levels` 15 or 255; codes one per byte. O(n).
KvParameters QuantizeKv(const float* x, int n, int levels, uint8_t* codes);

// What attention reads back for `x`, for simulations: the round trip through any format, in place.
// O(n).
void SimulateKv(KvFormat format, float* x, int n);

}  // namespace qserve::kernels
