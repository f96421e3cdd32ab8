// Where keys and values lie inside a page of the CPU's KV cache. Read by RopeAppend (writer) and
// Attention (reader) of every instruction set; nothing else looks inside a page.
//
// A page holds 64 positions. Per kv head, one after another: key codes, value codes, then
// (quantized formats) 64 fp16 each of key scales, key minimums, value scales, value minimums. Codes
// come in blocks of 16, one block per vector register:
//   keys:   [64 / 16 groups of positions][head_dim][16 positions]   (a dot product runs over
//   head_dim, 16 positions at once) values: [head_dim / 16 groups of channels][64 positions][16
//   channels]   (an output runs over positions, 16 channels at once)
// A block of int4 is 8 bytes: byte j holds element j in its low half and element j + 8 in its high
// half. int8: 16 bytes; fp16: 32; fp32: 64, in order.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace qserve::kernels::cpu {

inline constexpr int kKvBlock = 16;

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

// Byte offsets within one kv head's part of a page.
struct KvPageLayout {
  int64_t block_bytes;  // of 16 codes
  int64_t values;       // keys are at 0
  int64_t key_scales;   // then key minimums, value scales, value minimums, 128 bytes each
  int64_t head_bytes;

  [[gnu::always_inline]] constexpr KvPageLayout(KvFormat format, int head_dim)
      : block_bytes(kKvBlock * KvBits(format) / 8),
        values(int64_t{kKvPageTokens} * head_dim * KvBits(format) / 8),
        key_scales(2 * values),
        head_bytes(2 * values + (KvQuantized(format) ? 4 * kKvPageTokens * 2 : 0)) {}

  [[gnu::always_inline]] constexpr int64_t KeyBlock(int position_group, int channel,
                                                    int head_dim) const {
    return (int64_t{position_group} * head_dim + channel) * block_bytes;
  }
  [[gnu::always_inline]] constexpr int64_t ValueBlock(int channel_group, int position) const {
    return values + (int64_t{channel_group} * kKvPageTokens + position) * block_bytes;
  }
};

inline uint8_t* KvHead(const KvLayer& layer, const KvPageLayout& layout, int32_t page,
                       int kv_head) {
  return static_cast<uint8_t*>(layer.pages) + page * layer.page_bytes + kv_head * layout.head_bytes;
}

}  // namespace qserve::kernels::cpu
