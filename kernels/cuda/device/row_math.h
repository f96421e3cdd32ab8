// exp and log in fp32 by the polynomials of the CPU backend (kernels/cpu/math.h): the same
// correctly rounded operations in the same order, so that every GPU and the CPU give the same bits
// (tests hold them together). Used by SiLU and by sampling.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

inline constexpr float kLn2High =
    0.693359375f;  // few bits: its products with small integers are exact
inline constexpr float kLn2Low = -2.12194440e-4f;

// exp(x); exactly 1 at 0, 0 below -87.3 (so at -infinity), constant above 88.3. A NaN gives NaN or
// a number: do not ask.
QSERVE_DEVICE float Exponential(float x) {
  constexpr float kLowest = -87.3f, kHighest = 88.3f;
  constexpr float kMagic =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float y = Max(kLowest, Min(kHighest, x));
  const float shifted = Fma(y, 1.44269504088896341f, kMagic);
  const float n = shifted - kMagic;
  float r = Fma(n, -kLn2High, y);
  r = Fma(n, -kLn2Low, r);
  float p = Fma(0.0013814467905682798f, r, 0.008368780407008086f);
  p = Fma(p, r, 0.04166839419753962f);
  p = Fma(p, r, 0.16666520107879332f);
  p = Fma(p, r, 0.499999934125408f);
  p = Fma(p, r * r, r);
  p = p + 1.0f;
  const float power = FloatOf((BitsOf(shifted) << 23) + 0x3f800000u);
  return x < kLowest ? 0.0f : p * power;
}

// log(x) of a positive, normal, finite x; accurate near 1 too.
QSERVE_DEVICE float Logarithm(float x) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const auto bits = static_cast<int32_t>(BitsOf(x));
  const int32_t exponent = (bits - kSqrtHalf) >> 23;
  const float f = FloatOf(static_cast<uint32_t>(bits - exponent * (1 << 23))) - 1.0f;
  const auto e = static_cast<float>(exponent);
  const float f2 = f * f;
  float p = Fma(0.07333709750011337f, f, -0.11661546159770762f);
  p = Fma(p, f, 0.1163493884760971f);
  p = Fma(p, f, -0.12396495005570649f);
  p = Fma(p, f, 0.1425111163167296f);
  p = Fma(p, f, -0.16669158611011237f);
  p = Fma(p, f, 0.20000689415712375f);
  p = Fma(p, f, -0.24999981111334116f);
  p = Fma(p, f, 0.3333333125157018f);
  float y = Fma(f2 * f, p, e * kLn2Low);
  y = Fma(f2, -0.5f, y);
  y = y + f;
  return Fma(e, kLn2High, y);
}

}  // namespace qserve::kernels::cuda
