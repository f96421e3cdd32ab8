// The two blocks of bytes between host and sampling kernel: what to draw, and what was drawn.
// Written and read by sampling_plan.cc on the host and by the kernel; plain words, no pointers.
//
// Input block: SamplingHeader, SamplingRow[header.rows], SamplingEdit[...], float biases[...].
// Result block: SamplingResult[header.rows], SamplingTop[...].
#pragma once

#include <cstdint>

namespace qserve::kernels::cuda {

struct alignas(16) SamplingHeader {
  int32_t rows = 0;
  uint32_t edits_offset = 0;   // bytes from the start of the input block
  uint32_t biases_offset = 0;  // likewise
  uint32_t tops_offset = 0;    // bytes from the start of the result block
};

// SampleRow (kernels/backend.h) without its lists.
struct SamplingRow {
  int32_t slot = 0;
  float temperature = 1;
  int32_t top_k = 0;  // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint32_t seed_low = 0;
  uint32_t seed_high = 0;
  uint32_t candidate = 0;
  uint32_t position = 0;
  int32_t logprobs = -1;
  int32_t mask = -1;  // row of the grammar masks, or none
  uint32_t first_edit = 0;
  uint32_t edits = 0;
  uint32_t first_top = 0;  // of `logprobs` entries of the result block
  uint32_t reserved[3] = {};
};
static_assert(sizeof(SamplingRow) == 80);

// Everything that changes one id's logit; an id has one at most. Penalties come first, then biases
// in their order, then the ban.
struct SamplingEdit {
  int32_t id = 0;
  int32_t in_output = kNotPenalized;  // how often the id is in the output; 0: in the prompt only
  uint32_t first_bias = 0;
  uint32_t biases = 0;
  uint32_t banned = 0;
  float raw = 0;  // the kernel's: the logit before
  static constexpr int32_t kNotPenalized = -1;
};
static_assert(sizeof(SamplingEdit) == 24);

enum class SamplingOutcome : int32_t { kDrawn = 0, kNan = 1, kNothingLeft = 2 };

struct SamplingResult {
  int32_t id = -1;
  float logprob = 0;
  SamplingOutcome outcome = SamplingOutcome::kDrawn;
  int32_t tops = 0;  // entries at the row's first_top
};
static_assert(sizeof(SamplingResult) == 16);

struct SamplingTop {
  int32_t id = 0;
  float logprob = 0;
};

}  // namespace qserve::kernels::cuda
