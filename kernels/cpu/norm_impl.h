// Row loops of embedding, norm, SiLU and int8 rounding over 16 lanes. Part of float_kernels_impl.h.
#pragma once

#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/quant/activation_quant.h"

namespace qserve::kernels::cpu {

template <class V>
void EmbedRow(FloatType type, const void* table_row, int64_t n, float* out) {
  const auto* bytes = static_cast<const char*>(table_row);
  const int64_t width = type == FloatType::kF32 ? 4 : 2;
  const auto load = [type](const char* p) {
    if (type == FloatType::kF32) return V::Load(reinterpret_cast<const float*>(p));
    return type == FloatType::kF16 ? V::LoadHalf(p) : V::LoadBf16(p);
  };
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) V::Store(out + c, load(bytes + c * width));
  if (c == n) return;
  alignas(64) char tail[64] = {};
  for (int64_t i = 0; i < (n - c) * width; ++i) tail[i] = bytes[c * width + i];
  StoreTail<V>(out + c, n - c, load(tail));
}

template <class V>
void AddRow(float* residual, const float* delta, int64_t n) {
  int64_t c = 0;
  for (; c + 16 <= n; c += 16)
    V::Store(residual + c, V::Add(V::Load(residual + c), V::Load(delta + c)));
  for (; c < n; ++c) residual[c] += delta[c];
}

// 1 / sqrt(mean(x^2) + epsilon).
template <class V>
float InverseRms(const float* x, float epsilon, int64_t n) {
  auto squares = V::Set(0.0f);
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) {
    const auto v = V::Load(x + c);
    squares = V::Fma(v, v, squares);
  }
  if (c < n) {
    const auto v = LoadTail<V>(x + c, n - c, 0.0f);
    squares = V::Fma(v, v, squares);
  }
  const float mean_square = V::Total(squares) / static_cast<float>(n);
  return 1.0f / __builtin_sqrtf(mean_square + epsilon);
}

template <class V>
void NormRow(const float* x, const float* gain, float epsilon, int64_t n, float* out) {
  const float inverse = InverseRms<V>(x, epsilon, n);
  const auto factor = V::Set(inverse);
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) {
    V::Store(out + c, V::Mul(V::Mul(V::Load(x + c), factor), V::Load(gain + c)));
  }
  for (; c < n; ++c) out[c] = (x[c] * inverse) * gain[c];
}

template <class V>
[[gnu::always_inline]] inline typename V::F Silu(typename V::F gate, typename V::F up) {
  const auto negated = V::Mul(gate, V::Set(-1.0f));
  return V::Mul(V::Div(gate, V::Add(V::Set(1.0f), VecExp<V>(negated))), up);
}

template <class V>
void SiluRow(const float* gate, const float* up, int64_t n, float* out) {
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) V::Store(out + c, Silu<V>(V::Load(gate + c), V::Load(up + c)));
  if (c == n) return;
  const auto tail = Silu<V>(LoadTail<V>(gate + c, n - c, 0.0f), LoadTail<V>(up + c, n - c, 0.0f));
  StoreTail<V>(out + c, n - c, tail);
}

// As QuantizeRow of kernels/quant/activation_quant.h.
template <class V>
void QuantizeRowFast(const float* x, int64_t n, const RowTarget& target) {
  auto largest = V::SetInt(0);
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) largest = V::MaxMagnitude(largest, V::Load(x + c));
  if (c < n) largest = V::MaxMagnitude(largest, LoadTail<V>(x + c, n - c, 0.0f));
  const float amax = __builtin_bit_cast(float, V::LargestInt(largest));
  if (amax < kSmallestAmax) {
    for (int64_t i = 0; i < n; ++i) target.q[i] = 0;
    *target.scale = 0;
    *target.row_sum = 0;
    return;
  }
  const auto inverse = V::Set(127.0f / amax);
  const auto round = [inverse](typename V::F v) {
    const auto code = V::Min(V::Round(V::Mul(v, inverse)), V::Set(127.0f));
    return V::Max(code, V::Set(-127.0f));
  };
  auto sum = V::SetInt(0);
  for (c = 0; c + 16 <= n; c += 16) sum = V::StoreInt8(target.q + c, round(V::Load(x + c)), sum);
  if (c < n) {
    int8_t tail[16];
    sum = V::StoreInt8(tail, round(LoadTail<V>(x + c, n - c, 0.0f)), sum);
    for (int64_t i = 0; i < n - c; ++i) target.q[c + i] = tail[i];
  }
  *target.scale = amax / 127.0f;
  *target.row_sum = V::TotalInt(sum);
}

}  // namespace qserve::kernels::cpu
