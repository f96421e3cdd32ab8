// The ring of stages through which a linear's block reads: who copies what, and where a warp finds
// its fragments. A stage is [weights of two row tiles][their group words][kTokens rows of 128
// bytes]. The 16-byte chunks of token row t are permuted, chunk c at c ^ (t % 8), so that
// `ldmatrix` reads eight rows of one chunk from eight different banks.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/linear_params.h"
#include "kernels/cuda/device/linear_shape.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// A block's part of the product.
struct LinearPlace {
  int row_block = 0;
  int token_block = 0;
};
struct LinearBlock {
  LinearPlace place;
  int first_k_tile = 0;
  int last_k_tile = 0;  // one behind
};

template <class Shape>
QSERVE_DEVICE LinearBlock LocateBlock(const LinearParams& p) {
  LinearBlock block;
  block.place.row_block = BlockX();
  if (p.token_blocks > 1) {
    const int group_blocks = p.token_group * p.row_blocks;
    const int group = BlockX() / group_blocks, inside = BlockX() % group_blocks;
    const int first = group * p.token_group;
    const int width =
        p.token_blocks - first < p.token_group ? p.token_blocks - first : p.token_group;
    block.place.row_block = inside / width;
    block.place.token_block = first + inside % width;
  }
  const int longer = BlockY() < p.longer_splits ? BlockY() : p.longer_splits;
  block.first_k_tile = BlockY() * p.split_k_tiles + longer;
  block.last_k_tile = block.first_k_tile + p.split_k_tiles + (BlockY() < p.longer_splits ? 1 : 0);
  return block;
}

template <class Format, class Shape>
class LinearRing {
 public:
  static constexpr int kTileRows = 64;
  static constexpr int kRowTiles = Shape::kRows / kTileRows;
  static constexpr int kWeightBytes = kRowTiles * Format::kTileBytes;
  static constexpr int kGroupTileBytes = Format::kGroups ? kTileRows * 4 : 0;
  static constexpr int kGroupBytes = kRowTiles * kGroupTileBytes;
  static constexpr int kStageBytes =
      LinearStageBytes(Format::kTileBytes, Format::kGroups, Shape::kTokens);

  QSERVE_DEVICE LinearRing(const LinearParams& p, const LinearBlock& block) {
    const int lane = LaneId(), thread = ThreadId();
    const int row_warp = WarpId() % Shape::kRowWarps, token_warp = WarpId() / Shape::kRowWarps;
    const int sixteen = row_warp * (Shape::kWarpRows / 16);
    weights_at_ = sixteen / 4 * Format::kTileBytes + sixteen % 4 * 512 + lane * 16;
    groups_at_ = kWeightBytes + sixteen * 64 + lane / 4 * 8;
    // Matrices 0 and 1 are two chunks of eight tokens, 2 and 3 those of the next eight.
    const int token = token_warp * Shape::kWarpTokens + lane / 16 * 8 + lane % 8;
    tokens_at_ = kWeightBytes + kGroupBytes + token * 128 + (lane / 8 % 2 ^ lane % 8) * 16;
    copy_to_ = thread / 8 * 128 + (thread % 8 ^ thread / 8 % 8) * 16;
    tokens_left_ = p.m - block.place.token_block * Shape::kTokens - thread / 8;
    const int first_row_tile = block.place.row_block * kRowTiles;
    tiles_from_ =
        static_cast<uint32_t>(first_row_tile * p.k_tiles + block.first_k_tile) * kTileUnits +
        static_cast<uint32_t>(thread);
    static_assert(kRowTiles == 2);
    second_tile_ =
        first_row_tile + 1 < p.row_tiles ? static_cast<uint32_t>(p.k_tiles) * kTileUnits : 0;
    tokens_from_ =
        static_cast<uint32_t>(block.place.token_block * Shape::kTokens + thread / 8) * p.x_units +
        static_cast<uint32_t>(block.first_k_tile * 8 + thread % 8);
  }

  // Starts the copies of the block's next K tile into `stage`; the caller commits.
  QSERVE_DEVICE void CopyNext(const LinearParams& p, int stage) {
    uint8_t* to = SharedMemory() + stage * kStageBytes;
    QSERVE_UNROLL
    for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
      const uint32_t from = tiles_from_ + (row_tile == 0 ? 0 : second_tile_);
      CopyTile(to + row_tile * Format::kTileBytes, At(p.tiles, from));
    }
    if constexpr (Format::kGroups) {
      // Sixteen threads a row tile, whose group words are a sixteenth of its codes: units of those
      // are bytes of these.
      const auto thread = static_cast<uint32_t>(ThreadIdAnew());
      if (thread < 32) {
        const uint32_t from =
            tiles_from_ - thread + thread % 16 * 16 + (thread < 16 ? 0 : second_tile_);
        CopyAsync16(to + kWeightBytes + thread * 16, p.groups + from);
      }
    }
    constexpr int kTokensAtOnce = Shape::kThreads / 8;
    uint8_t* tokens_to = to + kWeightBytes + kGroupBytes + copy_to_;
    QSERVE_UNROLL
    for (int first = 0; first < Shape::kTokens; first += kTokensAtOnce) {
      if (kTokensAtOnce > Shape::kTokens && ThreadIdAnew() >= Shape::kTokens * 8) break;
      const uint32_t from = tokens_from_ + static_cast<uint32_t>(first) * p.x_units;
      // Rows behind the last are zeros, and their addresses are not read.
      CopyAsync16(tokens_to + first * 128, At(p.x, from), first < tokens_left_);
    }
    tiles_from_ += kTileUnits;
    tokens_from_ += 8;
  }

  // The sixteen bytes of this lane in load `load` of row fragment `fragment` of its warp.
  QSERVE_DEVICE const uint8_t* Weights(int stage, int load, int fragment) const {
    static_assert(4 % (Shape::kWarpRows / 16) == 0, "a warp's fragments lie in one row tile");
    return SharedMemory() + stage * kStageBytes + weights_at_ + load * 2048 + fragment * 512;
  }
  // This lane's two group words of that fragment.
  QSERVE_DEVICE const uint64_t* Groups(int stage, int fragment) const {
    return reinterpret_cast<const uint64_t*>(SharedMemory() + stage * kStageBytes + groups_at_ +
                                             fragment * 64);
  }
  // The row that this lane names to `ldmatrix` for token fragments `fragment` and the next. A step
  // is two chunks: bits 5 and 6, which nothing else than the permuted chunk touches.
  QSERVE_DEVICE const uint8_t* Tokens(int stage, int step, int fragment) const {
    static_assert(kStageBytes % 128 == 0 && (kWeightBytes + kGroupBytes) % 128 == 0);
    return SharedMemory() + ((stage * kStageBytes + tokens_at_) ^ step * 32) + fragment * 1024;
  }

 private:
  static_assert(Shape::kThreads / 8 % 8 == 0, "a thread keeps its place in the permutation");

  // Addresses are kept as counts of 16 bytes, which fit 32 bits up to 64 GiB.
  static constexpr uint32_t kTileUnits = Format::kTileBytes / 16;
  static_assert(!Format::kGroups || kGroupTileBytes * 16 == Format::kTileBytes);
  static QSERVE_DEVICE const uint8_t* At(const uint8_t* base, uint32_t units) {
    return base + static_cast<uint64_t>(units) * 16;
  }

  static QSERVE_DEVICE void CopyTile(uint8_t* to, const uint8_t* from) {
    constexpr int kAtOnce = Shape::kThreads * 16;
    static_assert(Format::kTileBytes % kAtOnce == 0);
    QSERVE_UNROLL
    for (int at = 0; at < Format::kTileBytes; at += kAtOnce)
      CopyAsync16(to + at + ThreadId() * 16, from + at);
  }

  uint32_t tiles_from_ = 0;   // of this thread
  uint32_t second_tile_ = 0;  // from a row tile to the next; 0, itself, where there is none: what
                              // comes of it is not written
  uint32_t tokens_from_ = 0;
  int tokens_left_ = 0;  // from this thread's first row on
  int weights_at_ = 0;
  int groups_at_ = 0;
  int tokens_at_ = 0;
  int copy_to_ = 0;
};

}  // namespace qserve::kernels::cuda
