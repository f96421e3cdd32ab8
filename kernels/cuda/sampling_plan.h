// What the sampling kernel needs of a step's SampleRows, flattened into one block of bytes, and the
// way back from its result block. Pure functions of their arguments; called by CudaBackend on the
// thread that uses it. Nothing is allocated once the scratch has grown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device/sampling_block.h"
#include "kernels/status.h"

namespace qserve::kernels::cuda {

inline constexpr int32_t kMaxTopLogprobs = 1024;  // of a row; clients are held to far fewer

// Memory that planning uses again. Made for one vocabulary at a time.
struct SamplingScratch {
  std::vector<int32_t>
      edit_of_id;  // [vocabulary]: index in `edits` of the row being planned, or -1
  std::vector<SamplingEdit> edits;
  std::vector<float> biases;
};

struct SamplingPlan {
  int32_t rows = 0;          // taken from the front of those given
  int64_t input_bytes = 0;   // written
  int64_t result_bytes = 0;  // of the result block that the kernel will write
};

// Bytes of a block that holds `rows` rows without lists.
constexpr int64_t SamplingInputBytes(int64_t rows) {
  return static_cast<int64_t>(sizeof(SamplingHeader)) +
         rows * static_cast<int64_t>(sizeof(SamplingRow));
}
// Lists of one row never need more than this: one edit per id, and its biases.
constexpr int64_t SamplingListBytes(int64_t vocab_size, int64_t biases) {
  return vocab_size * static_cast<int64_t>(sizeof(SamplingEdit)) + biases * 4;
}

// Writes the input block of as many of the first `rows` as fit in `block` (aligned to 16 bytes) and
// whose results fit in `result_capacity` bytes; whoever has rows left launches and plans again.
// `masks`: each row's grammar mask (SamplingLaunch::masks) or -1; empty for none. kOutOfMemory if
// not even one row fits, kUnsupported if a row asks for more than kMaxTopLogprobs. `rows` as
// checked by kernels/ops.h. O(rows + lists).
StatusOr<SamplingPlan> PlanSampling(std::span<const SampleRow> rows, std::span<const int32_t> masks,
                                    int32_t vocab_size, std::span<std::byte> block,
                                    int64_t result_capacity, SamplingScratch& scratch);

// Appends the plan's rows to `results` from a result block that has been copied to the host. `rows`
// are those the plan took. kDevice, naming the row counted from `first_row`, if a logit was NaN or
// every token banned.
Status ReadSamplingResults(std::span<const SampleRow> rows, int64_t first_row,
                           std::span<const std::byte> block, std::vector<SampledToken>* results);

}  // namespace qserve::kernels::cuda
