// Element-wise access to a KV page, for the reference operations and for tests: slow, and
// independent of how vector kernels walk the page.
#pragma once

#include <cstring>

#include "kernels/cpu/kv_page.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cpu::reference {

// Element `lane` of the block at `block`; a code for quantized formats.
inline float LoadCode(KvFormat format, const uint8_t* block, int lane) {
  switch (format) {
    case KvFormat::kInt4: {
      const int byte = block[lane % 8];
      return static_cast<float>(lane < 8 ? byte & 15 : byte >> 4);
    }
    case KvFormat::kInt8:
      return static_cast<float>(block[lane]);
    case KvFormat::kF16: {
      uint16_t half = 0;
      std::memcpy(&half, block + 2 * lane, 2);
      return HalfToFloat(half);
    }
    case KvFormat::kF32: {
      float value = 0;
      std::memcpy(&value, block + 4 * lane, 4);
      return value;
    }
  }
  return 0;
}

inline void StoreCode(KvFormat format, uint8_t* block, int lane, float value) {
  switch (format) {
    case KvFormat::kInt4: {
      const int code = static_cast<int>(value);
      uint8_t& byte = block[lane % 8];
      byte = static_cast<uint8_t>(lane < 8 ? (byte & 0xf0) | code : (byte & 0x0f) | (code << 4));
      return;
    }
    case KvFormat::kInt8:
      block[lane] = static_cast<uint8_t>(value);
      return;
    case KvFormat::kF16: {
      const uint16_t half = FloatToHalf(value);
      std::memcpy(block + 2 * lane, &half, 2);
      return;
    }
    case KvFormat::kF32:
      std::memcpy(block + 4 * lane, &value, 4);
      return;
  }
}

// One of the four parameter arrays of a head: 0 key scales, 1 key minimums, 2 value scales, 3 value
// minimums.
inline uint8_t* Parameter(uint8_t* head, const KvPageLayout& layout, int array, int position) {
  return head + layout.key_scales + (array * kKvPageTokens + position) * 2;
}
inline float LoadParameter(const uint8_t* head, const KvPageLayout& layout, int array,
                           int position) {
  uint16_t half = 0;
  std::memcpy(&half, Parameter(const_cast<uint8_t*>(head), layout, array, position), 2);
  return HalfToFloat(half);
}

}  // namespace qserve::kernels::cpu::reference
