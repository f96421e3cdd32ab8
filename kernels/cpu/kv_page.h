// Where keys and values lie inside a page of the CPU's KV cache. Read by RopeAppend (writer) and
// Attention (reader) of every instruction set; nothing else looks inside a page.
//
// A page holds 64 positions. Per kv head, one after another: key codes, value codes, then
// (quantized formats) 64 fp16 each of key scales, key minimums, value scales, value minimums. Codes
// come in rows, so that a product runs over rows and its sums stand side by side in lanes:
//   keys:   [head_dim] rows of 64 positions
//   values: [64 positions] rows of head_dim channels
// int8, fp16 and fp32 rows are in order. An int4 row is cut into panels of 64 codes and, where
// head_dim is no multiple of 64, a last one of 32. A panel is eight little-endian words of 32 bits
// (16 in a panel of 32); code i of it stands in word i % 8, in bit 4 (i / 8) and up. So one load
// and one mask give eight neighbouring codes, without a shift, each times 16^(i / 8 % 4): its
// place. Products are sums of codes times their place and are multiplied by the inverse, a power of
// two, at the end.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace qserve::kernels::cpu {

inline constexpr int kKvPanel = 64;  // codes

// Always inlined: they are called from translation units with flags of their own, whose copies
// nobody else may run.
[[gnu::always_inline]] constexpr int KvBits(KvFormat format) {
  switch (format) {
    case KvFormat::kInt4:
      return 4;
    case KvFormat::kInt8:
      return 8;
    case KvFormat::kF16:
      return 16;
    case KvFormat::kF32:
      return 32;
  }
  return 0;
}
[[gnu::always_inline]] constexpr bool KvQuantized(KvFormat format) {
  return format == KvFormat::kInt4 || format == KvFormat::kInt8;
}

// Where code `i` of an int4 row of `length` codes stands.
struct KvNibble {
  int byte;
  int shift;  // 0 or 4

  [[gnu::always_inline]] constexpr KvNibble(int i, int length) : byte(0), shift(i / 8 % 2 * 4) {
    const int panel = i / kKvPanel * kKvPanel;
    const int word_bytes = length - panel >= kKvPanel ? 4 : 2;
    byte = panel / 2 + i % 8 * word_bytes + (i - panel) / 16;
  }
};

// What code `i` of a row is multiplied by where it is read.
[[gnu::always_inline]] constexpr int KvPlace(KvFormat format, int i) {
  return format == KvFormat::kInt4 ? 1 << (4 * (i / 8 % 4)) : 1;
}

// Byte offsets within one kv head's part of a page.
struct KvPageLayout {
  int64_t key_row;     // bytes of one
  int64_t value_row;   // bytes of one
  int64_t values;      // keys are at 0
  int64_t key_scales;  // then key minimums, value scales, value minimums, 128 bytes each
  int64_t head_bytes;

  [[gnu::always_inline]] constexpr KvPageLayout(KvFormat format, int head_dim)
      : key_row(kKvPageTokens * KvBits(format) / 8),
        value_row(int64_t{head_dim} * KvBits(format) / 8),
        values(head_dim * key_row),
        key_scales(2 * values),
        head_bytes(2 * values + (KvQuantized(format) ? 4 * kKvPageTokens * 2 : 0)) {}

  [[gnu::always_inline]] constexpr int64_t KeyRow(int channel) const { return channel * key_row; }
  [[gnu::always_inline]] constexpr int64_t ValueRow(int position) const {
    return values + position * value_row;
  }
};

inline uint8_t* KvHead(const KvLayer& layer, const KvPageLayout& layout, int32_t page,
                       int kv_head) {
  return static_cast<uint8_t*>(layer.pages) + page * layer.page_bytes + kv_head * layout.head_bytes;
}

}  // namespace qserve::kernels::cpu
