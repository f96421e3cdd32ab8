// Half-precision (fp16) and bfloat16 values in plain C++: conversions that agree to the bit with
// F16C and AVX512, on any architecture and at compile time. Used by checkpoint reading, the
// quantizers and the reference kernels.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/types.h"

namespace qserve::kernels {

// Exact. A signalling NaN becomes quiet, as in hardware. Without branches, so that loops of it
// become vector code: the exponent is moved by a product, which also makes subnormals right;
// infinities and NaNs get theirs by hand.
constexpr float HalfToFloat(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const float moved = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(moved) | special | quiet | sign);
}

// Rounds to nearest, ties to even; overflow gives infinity.
constexpr uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude >= 0x38800000u) {  // normal: 2^-14 and more
    const uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
  if (magnitude < 0x33000000u)
    return static_cast<uint16_t>(sign);            // below half of the smallest subnormal
  const uint32_t shift = 126 - (magnitude >> 23);  // 14..24
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  const uint32_t tie = 1u << (shift - 1);
  const bool up = rest > tie || (rest == tie && (kept & 1u) != 0);
  return static_cast<uint16_t>(sign | (kept + (up ? 1u : 0u)));
}

constexpr float RoundToHalf(float value) { return HalfToFloat(FloatToHalf(value)); }

constexpr float Bf16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// Rounds to nearest, ties to even; a NaN stays one.
constexpr uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// out[i] = in[i] of `type`, exactly; host memory, any alignment.
inline void WidenFloats(FloatType type, const void* in, int64_t count, float* out) {
  if (type == FloatType::kF32) {
    std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* from = static_cast<const uint8_t*>(in);
  const auto bits = [from](int64_t i) {
    uint16_t value = 0;
    std::memcpy(&value, from + 2 * i, sizeof value);
    return value;
  };
  if (type == FloatType::kF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = HalfToFloat(bits(i));
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = Bf16ToFloat(bits(i));
  }
}

}  // namespace qserve::kernels
