// Where keys and values lie inside a page of the GPU's KV cache: sizes, in plain constants that
// host code may use too. kv_page_address.h has the addresses; RopeAppend writes by them and
// attention reads; nothing else looks inside a page.
//
// A page holds 64 positions. Per kv head, one after another: key codes, value codes and, where they
// are quantized, the parameters. Everything is in the order in which the lanes of a warp want the A
// operands of mma.m16n8k16, so that a piece of a page goes to shared memory by 16-byte copies and
// from there to registers without a conflict. Keys have tokens as rows, values have channels.
//
// Keys: 4 tiles of 16 tokens. Lane (g, c) of a warp multiplies tokens g and g + 8 and owns channels
//   [c * head_dim / 4, (c + 1) * head_dim / 4) of them, four for every k16 step: the first two are
//   the operand's columns 2c and 2c + 1, the others 8 + 2c and 9 + 2c. A tile is [units][16
//   tokens][4 c][unit]: a lane's share of a token, cut into units of 16, 8 or 4 bytes.
//   int4: a word holds 8 channels, 0..7, at bits 6, 22, 2, 18, 14, 30 (around the end to bit 1),
//   10, 26: masked, and masked after rotating by 8 bits, they are mantissas of fp16 numbers 16 +
//   code (channels 0, 1, 4, 5) and 256 + code (2, 3, 6, 7). int8 and fp16: channels in order.
// Values: head_dim / 16 tiles of 16 channels. Row g of a tile is channel 2g, row g + 8 channel 2g +
//   1; the operand's columns are tokens in order. A tile is, lane by lane:
//   int4: [32 lanes][4 k16 steps] words; bytes: tokens 2c, 2c + 8, 2c + 1, 2c + 9; low half channel
//   2g, high half channel 2g + 1.
//   int8: [2 pairs of steps][32 lanes][2 steps] two words, of tokens 2c and 2c + 1, then 2c + 8 and
//   2c + 9: bytes (2c, 2g), (2c, 2g + 1), (2c + 1, 2g), (2c + 1, 2g + 1).
//   fp16: [4 steps][32 lanes] the operand's four words.
// Parameters: 4 tiles of 16 tokens, keys then values, 64 bytes each: words of an fp16 scale (low)
//   and an fp16 minimum; token t of the tile at word (t % 8) * 2 + t / 8.
#pragma once

#include "kernels/types.h"

namespace qserve::kernels::cuda {

template <KvFormat kFormat, int kHeadDim>
struct KvPage {
  static_assert(kFormat != KvFormat::kF32, "a format of the CPU");
  static_assert(kHeadDim % 32 == 0 && kHeadDim >= 32 && kHeadDim <= 256);
  static constexpr bool kQuantized = kFormat != KvFormat::kF16;
  static constexpr int kBits = kFormat == KvFormat::kInt4 ? 4 : kQuantized ? 8 : 16;
  static constexpr int kLevels = kFormat == KvFormat::kInt4 ? 15 : 255;  // quantized ones

  static constexpr int kKeyTile = 16 * kHeadDim * kBits / 8;         // bytes
  static constexpr int kValueTile = 16 * kKvPageTokens * kBits / 8;  // bytes
  static constexpr int kValueTiles = kHeadDim / 16;
  static constexpr int kLaneKeyBytes = kHeadDim / 4 * kBits / 8;  // a lane's share of a token
  static constexpr int kKeyUnit = kLaneKeyBytes % 16 == 0 ? 16 : kLaneKeyBytes % 8 == 0 ? 8 : 4;

  static constexpr int kValues = 4 * kKeyTile;  // offsets within a head's part; keys are at 0
  static constexpr int kParameters = kValues + kValueTiles * kValueTile;
  static constexpr int kParameterTile = 128;
  static constexpr int kHeadBytes = kParameters + (kQuantized ? 4 * kParameterTile : 0);
};

}  // namespace qserve::kernels::cuda
