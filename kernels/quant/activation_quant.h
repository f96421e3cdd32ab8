// Rounding of an activation row to int8, as kernels/types.h (Activation) defines it: the plain form
// that vector kernels, the quantizer's simulation and tests agree with. No state, any thread.
#pragma once

#include <cstdint>

namespace qserve::kernels {

// Rows whose largest magnitude is below this count as zero: scale 0, codes 0 (127 / amax would
// overflow).
inline constexpr float kSmallestAmax = 0x1p-100f;

struct QuantizedRow {
  float scale = 0;  // amax / 127
  int32_t sum = 0;  // of the codes
};

// q[c] = round_to_nearest_even(x[c] * (127 / amax)), clamped to -127..127. A NaN anywhere makes the
// scale NaN, so that it is not lost. O(n).
QuantizedRow QuantizeRow(const float* x, int64_t n, int8_t* q);

}  // namespace qserve::kernels
