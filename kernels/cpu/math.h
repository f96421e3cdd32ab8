// Arithmetic that every CPU kernel agrees on to the bit: the constants of our exp and log, their
// plain form, and the sum over 16 virtual lanes. Used by the reference operations and, for the
// constants, by vec_math.h. No state, any thread.
//
// Errors, asserted over a dense sample (tests/ops/float_math_test.cc): Exp at most 1.1 units in the
// last place and monotone, Log at most 1.1 for results that are not near 0, absolute 1e-7 near 0.
// Both are made of correctly rounded operations in a fixed order only, so a vector lane and this
// code give the same bits on every machine.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace qserve::kernels::cpu {

inline constexpr int kLanes = 16;

// exp(x) = 2^n * exp(r), n = nearest integer of x / ln 2, r = x - n ln 2 in [-0.3466, 0.3466];
// exp(r) = 1 + r + r^2 * (c0 + c1 r + ... + c4 r^4), a minimax polynomial (relative error 3.1e-9
// before rounding).
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2Hi = 0.693359375f;  // few bits, so that n * kLn2Hi is exact
inline constexpr float kLn2Lo = -2.12194440e-4f;
inline constexpr float kExpMagic =
    12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
inline constexpr float kExpMin = -87.3f;  // below it the result is 0
inline constexpr float kExpMax = 88.3f;   // above it the result stays exp(kExpMax), 2.2e38
inline constexpr float kExpC0 = 0.499999934125408f;
inline constexpr float kExpC1 = 0.16666520107879332f;
inline constexpr float kExpC2 = 0.04166839419753962f;
inline constexpr float kExpC3 = 0.008368780407008086f;
inline constexpr float kExpC4 = 0.0013814467905682798f;

// log(x) = e ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2 / 2 + f^3 * (d0
// + ... + d8 f^8), minimax (absolute error of the bracket 2.3e-8).
inline constexpr int32_t kSqrtHalfBits = 0x3f3504f3;
inline constexpr float kLogD0 = 0.3333333125157018f;
inline constexpr float kLogD1 = -0.24999981111334116f;
inline constexpr float kLogD2 = 0.20000689415712375f;
inline constexpr float kLogD3 = -0.16669158611011237f;
inline constexpr float kLogD4 = 0.1425111163167296f;
inline constexpr float kLogD5 = -0.12396495005570649f;
inline constexpr float kLogD6 = 0.1163493884760971f;
inline constexpr float kLogD7 = -0.11661546159770762f;
inline constexpr float kLogD8 = 0.07333709750011337f;

// As x86's minps and maxps: the second operand when one is NaN.
inline float Min(float a, float b) { return a < b ? a : b; }
inline float Max(float a, float b) { return a > b ? a : b; }

// exp(x); exactly 1 at 0, 0 below kExpMin (so at -infinity), constant above kExpMax, NaN at NaN.
inline float Exp(float x) {
  const float y = Max(kExpMin, Min(kExpMax, x));
  const float shifted = std::fma(y, kLog2E, kExpMagic);
  const float n = shifted - kExpMagic;
  float r = std::fma(n, -kLn2Hi, y);
  r = std::fma(n, -kLn2Lo, r);
  float p = std::fma(kExpC4, r, kExpC3);
  p = std::fma(p, r, kExpC2);
  p = std::fma(p, r, kExpC1);
  p = std::fma(p, r, kExpC0);
  p = std::fma(p, r * r, r);
  p = p + 1.0f;
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;  // the bits of 2^n
  return x < kExpMin ? 0.0f : p * std::bit_cast<float>(power);
}

// log(x) for positive, normal, finite x.
inline float Log(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t exponent = (bits - kSqrtHalfBits) >> 23;
  const float f = std::bit_cast<float>(bits - exponent * (1 << 23)) - 1.0f;
  const float e = static_cast<float>(exponent);
  const float f2 = f * f;
  float p = std::fma(kLogD8, f, kLogD7);
  p = std::fma(p, f, kLogD6);
  p = std::fma(p, f, kLogD5);
  p = std::fma(p, f, kLogD4);
  p = std::fma(p, f, kLogD3);
  p = std::fma(p, f, kLogD2);
  p = std::fma(p, f, kLogD1);
  p = std::fma(p, f, kLogD0);
  float y = std::fma(f2 * f, p, e * kLn2Lo);
  y = std::fma(f2, -0.5f, y);
  y = y + f;
  return std::fma(e, kLn2Hi, y);
}

// A sum over virtual lanes: element i belongs to lane i % 16, lanes add their elements in order,
// and Total adds lanes i and i + 8, then i and i + 4, i + 2, i + 1.
struct LaneSum {
  float lane[kLanes] = {};
  void Add(int64_t i, float x) { lane[i % kLanes] += x; }
  void AddProduct(int64_t i, float x, float y) {
    lane[i % kLanes] = std::fma(x, y, lane[i % kLanes]);
  }
  float Total() const {
    float sum[kLanes];
    for (int i = 0; i < kLanes; ++i) sum[i] = lane[i];
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sum[i] += sum[i + width];
    }
    return sum[0];
  }
};

}  // namespace qserve::kernels::cpu
