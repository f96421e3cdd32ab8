// The shapes of a linear's blocks and what follows from them, for kernels and for the host that
// chooses one (kernels/cuda/linear_choice.h). Constants only.
#pragma once

namespace qserve::kernels::cuda {

// Channels of a block, in every shape: two row tiles.
inline constexpr int kLinearRows = 128;

// Bytes of a stage of the ring: weights of two row tiles, their group words if there are any, rows
// of 128 bytes.
constexpr int LinearStageBytes(int tile_bytes, bool groups, int tokens) {
  return 2 * tile_bytes + (groups ? 2 * 256 : 0) + tokens * 128;
}
// Words between a token's rows of 128 channels in shared memory at the end. Four more than
// channels: the eight rows and four pairs of columns that a warp writes at once then fall into 32
// different banks.
inline constexpr int kLinearPitch = kLinearRows + 4;
// The ring, and in the end the rows in its place; behind them, where the block stands.
constexpr int LinearRingBytes(int tile_bytes, bool groups, int tokens, int stages) {
  const int ring = stages * LinearStageBytes(tile_bytes, groups, tokens);
  const int rows = tokens * kLinearPitch * 4;
  return ring > rows ? ring : rows;
}
constexpr int LinearSharedBytes(int tile_bytes, bool groups, int tokens, int stages) {
  return LinearRingBytes(tile_bytes, groups, tokens, stages) + 16;
}

// A block of kRows x kTokens by warps of kWarpRows x kWarpTokens, with a ring of kStages; registers
// are limited so that kMinBlocks of them fit a multiprocessor. kAhead: a warp loads the next K
// step's operands while it multiplies the present one's; without it the other warps must cover the
// wait, and registers are saved.
template <int kTokenCount, int kRowsOfWarp, int kTokensOfWarp, int kStageCount, int kBlocks,
          bool kLoadsAhead = true>
struct LinearShape {
  static constexpr int kRows = kLinearRows;
  static constexpr int kTokens = kTokenCount;
  static constexpr int kWarpRows = kRowsOfWarp;
  static constexpr int kWarpTokens = kTokensOfWarp;
  static constexpr int kRowWarps = kRows / kWarpRows;
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kWarps = kRowWarps * kTokenWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kStages = kStageCount;
  static constexpr int kMinBlocks = kBlocks;
  static constexpr bool kAhead = kLoadsAhead;
};

// D and S take a launch of up to so many tokens in one block each; M and L take more, in several.
// kWide: tiles of 8192 bytes (int8, fp16) instead of 4096.
template <bool kWide>
using LinearD16 = LinearShape<16, 16, 16, 4, 4>;
template <bool kWide>
using LinearS32 = LinearShape<32, 32, 32, 4, 4>;
template <bool kWide>
using LinearS64 = LinearShape<64, 32, 64, 3, 4, false>;
template <bool kWide>
using LinearM128 = LinearShape<128, 32, 64, 3, 2, false>;
template <bool kWide>
using LinearL256 = LinearShape<256, 64, 64, kWide ? 3 : 4, 1>;

}  // namespace qserve::kernels::cuda
