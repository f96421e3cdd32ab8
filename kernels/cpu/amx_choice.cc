// The choices around AMX's tiles.
#include "kernels/cpu/amx_choice.h"

#include <algorithm>

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kTwoTiles = 32;                          // tokens multiplied at once
constexpr int64_t kChunkBytes = int64_t{5} << 18;          // 1.25 MiB of the second-level cache
constexpr int64_t kLeastChunk = 128;                       // below, unpacking weighs too much
constexpr int64_t kLargestChunk = 512;                     // above, sums leave the cache
constexpr int64_t kFromTokens = 32;                        // whole tiles, more than memory hides
constexpr int64_t kFromTokensGroup = 2 * kFromTokens + 1;  // unpacking multiplies and adds

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

bool TilesPay(WeightFormat format, int64_t tokens) {
  switch (format) {
    case WeightFormat::kW4Group128:
      return tokens >= kFromTokensGroup;
    case WeightFormat::kW4PerChannel:
    case WeightFormat::kW8:
      return tokens >= kFromTokens;
    case WeightFormat::kFloat:
    case WeightFormat::kHalfFixedOrder:
      return false;
  }
  return false;
}

int64_t MaxChunkTokens(int64_t padded_columns) {
  const int64_t fitting = kChunkBytes / padded_columns / kTwoTiles * kTwoTiles;
  return std::clamp(fitting, kLeastChunk, kLargestChunk);
}

int64_t ChunkTokens(int64_t tokens, int64_t padded_columns) {
  const int64_t most = MaxChunkTokens(padded_columns);
  const int64_t chunks = (tokens + most - 1) / most;
  return RoundUp((tokens + chunks - 1) / chunks, kTwoTiles);
}

int64_t UnitPanels(int64_t panels, int64_t chunks, int threads) {
  constexpr int64_t kUnitsPerThread = 4;  // as ForEachUnit wants them to share rows alone
  return (panels + 3) / 4 * chunks >= kUnitsPerThread * threads ? 4 : 2;
}

}  // namespace qserve::kernels::cpu
