// Rounding of an activation row to int8, see activation_quant.h.
#include "kernels/quant/activation_quant.h"

#include <bit>
#include <cmath>

namespace qserve::kernels {

QuantizedRow QuantizeRow(const float* x, int64_t n, int8_t* q) {
  uint32_t largest = 0;  // magnitudes compare as integers, and a NaN is the largest
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float amax = std::bit_cast<float>(largest);
  QuantizedRow row;
  if (amax < kSmallestAmax) {
    for (int64_t i = 0; i < n; ++i) q[i] = 0;
    return row;
  }
  row.scale = amax / 127.0f;
  const float inverse = 127.0f / amax;
  for (int64_t i = 0; i < n; ++i) {
    float code = std::nearbyint(x[i] * inverse);
    code = code < 127.0f ? code : 127.0f;  // a NaN becomes 127; its row's scale says so
    code = code > -127.0f ? code : -127.0f;
    q[i] = static_cast<int8_t>(code);
    row.sum += q[i];
  }
  return row;
}

}  // namespace qserve::kernels
