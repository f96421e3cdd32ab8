// Sizes of the attention kernels: plain constants that the plan and the launch share with the
// device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/kv_page.h"

namespace qserve::kernels::cuda {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = 32 * kAttentionWarps;
inline constexpr int kChunkPages = kAttentionChunkTokens / kKvPageTokens;

// kTiles: how many n8 tiles of query columns a block works on.
template <KvFormat kFormat, int kHeadDim, int kTiles>
struct AttentionShape {
  using Page = KvPage<kFormat, kHeadDim>;
  static constexpr int kColumns = 8 * kTiles;
  static constexpr int kSteps = kHeadDim / 16;  // k16 steps of a query-key product
  // Output tiles of 16 channels of each warp; the last warps may have fewer.
  static constexpr int kWarpTiles = (Page::kValueTiles + kAttentionWarps - 1) / kAttentionWarps;

  // Every warp has a ring of its own: slots of the keys of 16 tokens with their parameters, or of a
  // page's values of its channels.
  static constexpr int kKeySlot = Page::kKeyTile + (Page::kQuantized ? Page::kParameterTile : 0);
  static constexpr int kValueSlot = kWarpTiles * Page::kValueTile;
  static constexpr int kSlot = kKeySlot > kValueSlot ? kKeySlot : kValueSlot;
  static constexpr int kFit = 48 * 1024 / (kAttentionWarps * kSlot);
  static constexpr int kSlots = kFit > 6 ? 6 : kFit < 2 ? 2 : kFit;

  // Shared memory: rings, softmax weights (fp16) of a chunk, then per warp and column the maximum,
  // the sum and the sum of minimums.
  static constexpr int kWeights = kAttentionWarps * kSlots * kSlot;
  static constexpr int kMaxima = kWeights + kAttentionChunkTokens * kColumns * 2;
  static constexpr int kSums = kMaxima + kAttentionWarps * kColumns * 4;
  static constexpr int kColumnStates = 5;  // that each warp keeps for itself
  static constexpr int kColumnState = kSums + 2 * kAttentionWarps * kColumns * 4;
  static constexpr int kQueries = kColumnState + kColumnStates * kAttentionWarps * kColumns * 4;
  // Where they would take too many registers, the query operands.
  static constexpr bool kSharedQueries = kTiles > 2 || kTiles* kHeadDim >= 256;
  static constexpr int kSharedBytes =
      kQueries + (kSharedQueries ? kSteps * kTiles * 32 * 2 * 4 : 0);

  // Blocks that a multiprocessor should hold, which bounds the registers of a thread.
  static constexpr int kMinBlocks = kTiles == 1   ? (kHeadDim > 128 ? 3 : 4)
                                    : kTiles == 2 ? (kHeadDim > 128 ? 2 : 3)
                                                  : 2;
};

}  // namespace qserve::kernels::cuda
