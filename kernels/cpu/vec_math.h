// exp and log over 16 lanes: the operations of math.h in the same order. Included by
// float_kernels_impl.h's parts alone.
#pragma once

#include "kernels/cpu/math.h"

namespace qserve::kernels::cpu {

// 2^n * exp(r), or 0 where x is too small.
template <class V>
[[gnu::always_inline]] inline typename V::F ExpOfParts(typename V::F x, typename V::F shifted,
                                                       typename V::F r) {
  auto p = V::Fma(V::Set(kExpC4), r, V::Set(kExpC3));
  p = V::Fma(p, r, V::Set(kExpC2));
  p = V::Fma(p, r, V::Set(kExpC1));
  p = V::Fma(p, r, V::Set(kExpC0));
  p = V::Fma(p, V::Mul(r, r), r);
  p = V::Add(p, V::Set(1.0f));
  p = V::Mul(p, V::PowerOfMagic(shifted));
  return V::KeepUnlessLess(x, V::Set(kExpMin), p);
}

template <class V>
[[gnu::always_inline]] inline typename V::F VecExp(typename V::F x) {
  const auto y = V::Max(V::Set(kExpMin), V::Min(V::Set(kExpMax), x));
  const auto shifted = V::Fma(y, V::Set(kLog2E), V::Set(kExpMagic));
  const auto n = V::Sub(shifted, V::Set(kExpMagic));
  auto r = V::Fma(n, V::Set(-kLn2Hi), y);
  r = V::Fma(n, V::Set(-kLn2Lo), r);
  return ExpOfParts<V>(x, shifted, r);
}

// The same bits for x <= 0 and NaN, without the clamps that only other arguments need.
template <class V>
[[gnu::always_inline]] inline typename V::F VecExpOfNegative(typename V::F x) {
  const auto shifted = V::Fma(x, V::Set(kLog2E), V::Set(kExpMagic));
  const auto n = V::Sub(shifted, V::Set(kExpMagic));
  auto r = V::Fma(n, V::Set(-kLn2Hi), x);
  r = V::Fma(n, V::Set(-kLn2Lo), r);
  return ExpOfParts<V>(x, shifted, r);
}

template <class V>
[[gnu::always_inline]] inline typename V::F VecLog(typename V::F x) {
  typename V::F mantissa;
  const auto e = V::SplitLog(x, &mantissa);
  const auto f = V::Sub(mantissa, V::Set(1.0f));
  const auto f2 = V::Mul(f, f);
  auto p = V::Fma(V::Set(kLogD8), f, V::Set(kLogD7));
  p = V::Fma(p, f, V::Set(kLogD6));
  p = V::Fma(p, f, V::Set(kLogD5));
  p = V::Fma(p, f, V::Set(kLogD4));
  p = V::Fma(p, f, V::Set(kLogD3));
  p = V::Fma(p, f, V::Set(kLogD2));
  p = V::Fma(p, f, V::Set(kLogD1));
  p = V::Fma(p, f, V::Set(kLogD0));
  auto y = V::Fma(V::Mul(f2, f), p, V::Mul(e, V::Set(kLn2Lo)));
  y = V::Fma(f2, V::Set(-0.5f), y);
  y = V::Add(y, f);
  return V::Fma(e, V::Set(kLn2Hi), y);
}

// The first n (1..15) of 16 floats; the others are `rest`.
template <class V>
typename V::F LoadTail(const float* p, int64_t n, float rest) {
  float lane[16];
  for (int64_t i = 0; i < 16; ++i) lane[i] = i < n ? p[i] : rest;
  return V::Load(lane);
}
template <class V>
void StoreTail(float* p, int64_t n, typename V::F x) {
  float lane[16];
  V::Store(lane, x);
  for (int64_t i = 0; i < n; ++i) p[i] = lane[i];
}

}  // namespace qserve::kernels::cpu
