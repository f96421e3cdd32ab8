// Norm and rotation of a head, and the storing of keys and values, over 16 lanes. Part of
// float_kernels_impl.h. head_dim is a multiple of 32, at most 256.
#pragma once

#include "kernels/cpu/kv_page.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/quant/kv_quant.h"

namespace qserve::kernels::cpu {

template <class V>
void RotateHead(float* x, int n, const float* gain, float epsilon, const float* cos_sin) {
  if (gain != nullptr) NormRow<V>(x, gain, epsilon, n, x);
  const int half = n / 2;
  for (int i = 0; i < half; i += 16) {
    const auto a = V::Load(x + i), b = V::Load(x + i + half);
    const auto cosine = V::Load(cos_sin + i), sine = V::Load(cos_sin + half + i);
    const auto b_sine = V::Mul(V::Mul(b, sine), V::Set(-1.0f));
    V::Store(x + i, V::Fma(a, cosine, b_sine));
    V::Store(x + i + half, V::Fma(b, cosine, V::Mul(a, sine)));
  }
}

// As QuantizeKv of kernels/quant/kv_quant.h, but the codes stay floats, in `codes`.
template <class V>
KvParameters QuantizeKvFast(const float* x, int n, int levels, float* codes) {
  auto least = V::Load(x), largest = V::Load(x);
  for (int i = 16; i < n; i += 16) {
    const auto v = V::Load(x + i);
    least = V::Min(v, least);
    largest = V::Max(v, largest);
  }
  const KvParameters parameters = ChooseKvParameters(V::Least(least), V::Largest(largest), levels);
  const auto minimum = V::Set(parameters.minimum), inverse = V::Set(parameters.inverse);
  const auto top = V::Set(static_cast<float>(levels)), zero = V::Set(0.0f);
  for (int i = 0; i < n; i += 16) {
    const auto code = V::Round(V::Mul(V::Sub(V::Load(x + i), minimum), inverse));
    V::Store(codes + i, V::Min(V::Max(code, zero), top));  // NaN: 0
  }
  return parameters;
}

inline constexpr int kLargestHeadDim = 256;

// Quantizes if the format wants it and stores scale and minimum in arrays `array` and `array` + 1.
// Returns what the blocks hold.
template <class V>
const float* PrepareKv(KvFormat format, const float* x, int n, uint8_t* head, int array, int slot,
                       float* codes) {
  if (format == KvFormat::kF16 || format == KvFormat::kF32) return x;
  const KvPageLayout layout(format, n);
  const KvParameters parameters =
      QuantizeKvFast<V>(x, n, format == KvFormat::kInt4 ? 15 : 255, codes);
  uint8_t* stored = head + layout.key_scales + (array * kKvPageTokens + slot) * 2;
  __builtin_memcpy(stored, &parameters.scale_half, 2);
  __builtin_memcpy(stored + 2 * kKvPageTokens, &parameters.minimum_half, 2);
  return codes;
}

// A key is one element of each of head_dim rows.
template <class V>
void StoreKey(KvFormat format, const float* x, int n, uint8_t* head, int slot) {
  float codes[kLargestHeadDim];
  const float* values = PrepareKv<V>(format, x, n, head, 0, slot, codes);
  const KvPageLayout layout(format, n);
  alignas(64) uint8_t narrow[kLargestHeadDim * 2];
  const int width = KvBits(format) / 8;  // 0 for int4
  for (int i = 0; i < n; i += 16) {
    if (format == KvFormat::kF16) V::StoreHalf(narrow + 2 * i, V::Load(values + i));
    if (width <= 1) V::StoreBytes(narrow + i, V::Load(values + i));
  }
  if (format == KvFormat::kInt4) {
    const KvNibble place(slot, kKvPageTokens);
    uint8_t* byte = head + place.byte;
    for (int i = 0; i < n; ++i, byte += layout.key_row) {
      *byte = static_cast<uint8_t>((*byte & (0xf0 >> place.shift)) | (narrow[i] << place.shift));
    }
    return;
  }
  const auto* source = format == KvFormat::kF32 ? reinterpret_cast<const uint8_t*>(values) : narrow;
  uint8_t* element = head + slot * width;
  for (int i = 0; i < n; ++i, element += layout.key_row) {
    for (int b = 0; b < width; ++b) element[b] = source[i * width + b];
  }
}

// `codes` one per byte, as many as a panel holds. kWordBytes of each of its eight words: 4, or 2 in
// a panel of 32.
template <class V, int kWordBytes>
void StoreNibblePanel(const uint8_t* codes, uint8_t* panel) {
  for (int word = 0; word < 8; ++word) {
    for (int b = 0; b < kWordBytes; ++b) {
      panel[word * kWordBytes + b] =
          static_cast<uint8_t>(codes[16 * b + word] | (codes[16 * b + 8 + word] << 4));
    }
  }
}

// A value is a row.
template <class V>
void StoreValue(KvFormat format, const float* x, int n, uint8_t* head, int slot) {
  float codes[kLargestHeadDim];
  const float* values = PrepareKv<V>(format, x, n, head, 2, slot, codes);
  uint8_t* row = head + KvPageLayout(format, n).ValueRow(slot);
  if (format == KvFormat::kF32) {
    for (int i = 0; i < n; i += 16)
      V::Store(reinterpret_cast<float*>(row) + i, V::Load(values + i));
    return;
  }
  if (format == KvFormat::kF16) {
    for (int i = 0; i < n; i += 16) V::StoreHalf(row + 2 * i, V::Load(values + i));
    return;
  }
  alignas(64) uint8_t narrow[kLargestHeadDim];
  uint8_t* bytes = format == KvFormat::kInt8 ? row : narrow;
  for (int i = 0; i < n; i += 16) V::StoreBytes(bytes + i, V::Load(values + i));
  if (format == KvFormat::kInt8) return;
  int i = 0;
  for (; i + kKvPanel <= n; i += kKvPanel) StoreNibblePanel<V, 4>(narrow + i, row + i / 2);
  if (i < n) StoreNibblePanel<V, 2>(narrow + i, row + i / 2);
}

}  // namespace qserve::kernels::cpu
