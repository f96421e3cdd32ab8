// The choice of a linear's kernel. Small batches are bound by reading weights: blocks of few
// tokens, and K split until every multiprocessor has enough copies under way. Large ones are bound
// by multiplying: the larger tile unless it wastes more, and a split only where blocks are too few.
#include "kernels/cuda/linear_choice.h"

#include <algorithm>
#include <array>
#include <span>

#include "common/check.h"
#include "kernels/cuda/device/linear_shape.h"

namespace qserve::kernels::cuda {
namespace {

// What is known of a shape at run time.
struct Tile {
  LinearTile tile = LinearTile::kD16;
  int tokens = 0;
  int min_blocks = 0;  // that registers leave room for on a multiprocessor
  int stages = 0;
};

template <class Shape>
constexpr Tile Of(LinearTile tile) {
  return {tile, Shape::kTokens, Shape::kMinBlocks, Shape::kStages};
}

template <bool kWide>
Tile TileOf(LinearTile tile) {
  switch (tile) {
    case LinearTile::kD16:
      return Of<LinearD16<kWide>>(tile);
    case LinearTile::kS32:
      return Of<LinearS32<kWide>>(tile);
    case LinearTile::kS64:
      return Of<LinearS64<kWide>>(tile);
    case LinearTile::kM128:
      return Of<LinearM128<kWide>>(tile);
    case LinearTile::kL256:
      return Of<LinearL256<kWide>>(tile);
  }
  QSERVE_CHECK_MSG(false, "unknown tile");
  return {};
}

bool IsWide(WeightFormat format) {
  return format == WeightFormat::kW8 || format == WeightFormat::kHalfFixedOrder;
}

Tile TileOf(WeightFormat format, LinearTile tile) {
  return IsWide(format) ? TileOf<true>(tile) : TileOf<false>(tile);
}

int TileBytes(WeightFormat format) { return IsWide(format) ? 8192 : 4096; }

int64_t SharedBytes(WeightFormat format, LinearTile tile) {
  const Tile of = TileOf(format, tile);
  return LinearSharedBytes(TileBytes(format), format == WeightFormat::kW4Group128, of.tokens,
                           of.stages);
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a tile that a multiprocessor holds at once.
int64_t Resident(const LinearMachine& machine, WeightFormat format, LinearTile tile) {
  constexpr int64_t kReserved = 1024;
  const int64_t fit =
      (machine.shared_bytes_per_block + kReserved) / (SharedBytes(format, tile) + kReserved);
  return std::min<int64_t>(fit, TileOf(format, tile).min_blocks);
}

// Fewer K tiles than these a block, and filling the ring and adding up cost more than they bring.
constexpr int64_t kLeastTilesOfSplit = 4;

int64_t BlocksOf(const LinearChoice& choice) {
  return int64_t{choice.row_blocks} * choice.token_blocks * choice.splits;
}

// Rough time of a product that is bound by reading weights, in K tiles of one block. Up to what
// keeps memory busy more blocks make it shorter, then they only share; where they come in several
// waves, half a block more for the last one, which is not full.
double StreamCost(const LinearMachine& machine, const LinearProblem& problem,
                  const LinearChoice& choice) {
  constexpr double kBytesUnderWay = 64 << 10;  // of weights, on each multiprocessor
  const Tile tile = TileOf(problem.format, choice.tile);
  const double ring = (tile.stages - 1) * 2.0 * TileBytes(problem.format);
  const double multiprocessors = machine.multiprocessors;
  const double slots =
      multiprocessors * static_cast<double>(Resident(machine, problem.format, choice.tile));
  const double wanted = std::min(slots, multiprocessors * kBytesUnderWay / ring);
  const double overhead = choice.splits > 1 ? 2 : 1;
  const double block = static_cast<double>(CeilDivide(problem.k_tiles, choice.splits)) + overhead;
  const auto blocks = static_cast<double>(BlocksOf(choice));
  if (blocks <= slots) return std::max(blocks, wanted) / slots * block;
  return (blocks / slots + 0.5) * block;
}

// The same of one that is bound by multiplying, in K tiles of one token's column: the blocks that
// the busiest multiprocessor gets, each as long as its part of K plus what starting and adding up
// take.
double ComputeCost(const LinearMachine& machine, const LinearProblem& problem, int tokens,
                   const LinearChoice& choice) {
  const double overhead = choice.splits > 1 ? 8 : 3;
  const auto blocks = static_cast<double>(CeilDivide(BlocksOf(choice), machine.multiprocessors));
  // The larger tile reads less of shared memory a product; the smaller one needs a second block
  // beside it to cover its waits.
  const double efficiency = choice.tile == LinearTile::kL256 ? 1.0 : blocks > 1 ? 0.9 : 0.75;
  return blocks * tokens / efficiency *
         (static_cast<double>(CeilDivide(problem.k_tiles, choice.splits)) + overhead);
}

// The cheapest of every legal number of splits of the given tiles.
template <class Cost>
LinearChoice Cheapest(const LinearMachine& machine, const LinearProblem& problem,
                      std::span<const LinearTile> tiles, Cost cost) {
  constexpr int64_t kMostSplits = 32;
  const int64_t most =
      problem.format == WeightFormat::kHalfFixedOrder
          ? 1
          : std::clamp<int64_t>(problem.k_tiles / kLeastTilesOfSplit, 1, kMostSplits);
  LinearChoice best;
  double least = 0;
  for (const LinearTile tile : tiles) {
    if (!IsLegal(machine, problem.format, tile)) continue;
    for (int splits = 1; splits <= most; ++splits) {
      const LinearChoice choice = MakeChoice(problem, tile, splits);
      const double price = cost(choice);
      if (best.row_blocks != 0 && price >= least) continue;
      least = price;
      best = choice;
    }
  }
  return best;
}

}  // namespace

bool IsLegal(const LinearMachine& machine, WeightFormat format, LinearTile tile) {
  // Logits are of sampled rows only: never enough of them for the largest tile.
  if (format == WeightFormat::kHalfFixedOrder && tile == LinearTile::kL256) return false;
  return HasGpuOrder(format) && SharedBytes(format, tile) <= machine.shared_bytes_per_block;
}

int64_t LinearArrivalBytes(const LinearChoice& choice) {
  return CeilDivide(int64_t{choice.row_blocks} * choice.token_blocks * 4, 256) * 256;
}

LinearChoice MakeChoice(const LinearProblem& problem, LinearTile tile, int splits) {
  QSERVE_CHECK(splits >= 1 && splits <= problem.k_tiles);
  const Tile of = TileOf(problem.format, tile);
  LinearChoice choice;
  choice.tile = tile;
  choice.splits = splits;
  choice.row_blocks = static_cast<int>(CeilDivide(problem.n, kLinearRows));
  choice.token_blocks = static_cast<int>(CeilDivide(problem.m, of.tokens));
  choice.token_group = std::min(choice.token_blocks, 8);
  choice.shared_bytes = SharedBytes(problem.format, tile);
  if (splits > 1) {
    const int64_t blocks = int64_t{choice.row_blocks} * choice.token_blocks;
    choice.sums_bytes = LinearArrivalBytes(choice) + blocks * kLinearRows * of.tokens * 4;
  }
  if (problem.format == WeightFormat::kHalfFixedOrder)
    choice.scratch_bytes = problem.m * problem.k_tiles * kGpuTileActivationBytes;
  return choice;
}

LinearChoice ChooseLinear(const LinearMachine& machine, const LinearProblem& problem) {
  QSERVE_CHECK(problem.m >= 1 && problem.n >= 1 && problem.k_tiles >= 1);
  constexpr std::array<LinearTile, 3> kSmall = {LinearTile::kD16, LinearTile::kS32,
                                                LinearTile::kS64};
  for (const LinearTile& tile : kSmall) {
    if (problem.m > TileOf(problem.format, tile).tokens) continue;
    return Cheapest(machine, problem, {&tile, 1}, [&](const LinearChoice& choice) {
      return StreamCost(machine, problem, choice);
    });
  }
  constexpr std::array<LinearTile, 2> kLarge = {LinearTile::kM128, LinearTile::kL256};
  return Cheapest(machine, problem, kLarge, [&](const LinearChoice& choice) {
    return ComputeCost(machine, problem, TileOf(problem.format, choice.tile).tokens, choice);
  });
}

LinearWorkspace LargestLinearWorkspace(const LinearMachine& machine, const GpuWeightLayout& layout,
                                       int64_t most_tokens) {
  LinearWorkspace largest;
  int64_t m = 0;
  while (m < most_tokens) {
    // The choice changes behind 16, 32, 64 and multiples of 128 only.
    m = std::min(m < 128 ? std::max<int64_t>(16, 2 * m) : m + 128, most_tokens);
    const LinearChoice choice = ChooseLinear(machine, ProblemOf(layout, m));
    largest.sums_bytes = std::max(largest.sums_bytes, choice.sums_bytes);
    largest.scratch_bytes = std::max(largest.scratch_bytes, choice.scratch_bytes);
  }
  return largest;
}

}  // namespace qserve::kernels::cuda
