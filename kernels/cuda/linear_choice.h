// Which of the linear's kernels to launch and how: a pure function of the product's shape and the
// GPU's limits, tested without one. Called by the CUDA backend for each linear; results do not
// depend on the choice (sums of integers are exact, fp16's are never split).
#pragma once

#include <cstdint>

#include "kernels/quant/gpu_weight.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

// Blocks of 128 channels by so many tokens (device/linear_shape.h).
enum class LinearTile : uint8_t { kD16, kS32, kS64, kM128, kL256 };

// What the choice needs to know of a GPU.
struct LinearMachine {
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // with the opt-in; a multiprocessor has 1 KB more, which
                                       // each of its blocks takes away
};

struct LinearProblem {
  WeightFormat format = WeightFormat::kW4Group128;
  int64_t n = 0;
  int64_t k_tiles = 0;
  int64_t m = 0;
};
inline LinearProblem ProblemOf(const GpuWeightLayout& layout, int64_t m) {
  return {layout.format, layout.n, layout.k_tiles, m};
}

struct LinearChoice {
  LinearTile tile = LinearTile::kD16;
  int splits = 1;  // of K; 1 for kHalfFixedOrder
  int row_blocks = 0;
  int token_blocks = 0;
  int token_group = 1;  // token blocks that follow one another before the next row block
  int64_t shared_bytes = 0;
  // Device memory the launch needs. `sums` must be zero and is left so; `scratch` is anything.
  int64_t sums_bytes = 0;
  int64_t scratch_bytes = 0;
};

// True if a block of this tile fits the machine and the format has a kernel of it.
bool IsLegal(const LinearMachine& machine, WeightFormat format, LinearTile tile);

// The choice with a given tile and number of splits, which must be legal: 1 <= splits <= k_tiles.
LinearChoice MakeChoice(const LinearProblem& problem, LinearTile tile, int splits);

// The one to launch. m >= 1. Every machine of compute capability 8.0 or more has 99 KB of shared
// memory a block, which is all that is needed.
LinearChoice ChooseLinear(const LinearMachine& machine, const LinearProblem& problem);

// The most device memory that any of 1 to `most_tokens` tokens needs for this weight: not always
// what the most tokens need, for small batches are split further.
struct LinearWorkspace {
  int64_t sums_bytes = 0;
  int64_t scratch_bytes = 0;
};
LinearWorkspace LargestLinearWorkspace(const LinearMachine& machine, const GpuWeightLayout& layout,
                                       int64_t most_tokens);

// Counters of arrivals at the front of `sums`.
int64_t LinearArrivalBytes(const LinearChoice& choice);

}  // namespace qserve::kernels::cuda
