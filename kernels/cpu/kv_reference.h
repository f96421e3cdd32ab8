// Element-wise access to a KV page, for the reference operations and for tests: slow, and
// independent of how vector kernels walk the page.
#pragma once

#include <cstring>

#include "kernels/cpu/kv_page.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cpu::reference {

// Element `i` of a row of `length`; a code for quantized formats.
inline float LoadCode(KvFormat format, const uint8_t* row, int length, int i) {
  switch (format) {
    case KvFormat::kInt4: {
      const KvNibble place(i, length);
      return static_cast<float>((row[place.byte] >> place.shift) & 15);
    }
    case KvFormat::kInt8:
      return static_cast<float>(row[i]);
    case KvFormat::kF16: {
      uint16_t half = 0;
      std::memcpy(&half, row + 2 * i, 2);
      return HalfToFloat(half);
    }
    case KvFormat::kF32: {
      float value = 0;
      std::memcpy(&value, row + 4 * i, 4);
      return value;
    }
  }
  return 0;
}

inline void StoreCode(KvFormat format, uint8_t* row, int length, int i, float value) {
  switch (format) {
    case KvFormat::kInt4: {
      const KvNibble place(i, length);
      uint8_t& byte = row[place.byte];
      byte = static_cast<uint8_t>((byte & (0xf0 >> place.shift)) |
                                  (static_cast<int>(value) << place.shift));
      return;
    }
    case KvFormat::kInt8:
      row[i] = static_cast<uint8_t>(value);
      return;
    case KvFormat::kF16: {
      const uint16_t half = FloatToHalf(value);
      std::memcpy(row + 2 * i, &half, 2);
      return;
    }
    case KvFormat::kF32:
      std::memcpy(row + 4 * i, &value, 4);
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
