// What one step does: the scheduler's output, the executor's input and the only thing a leader
// tells a follower. Plain data, flat on the wire, versioned and validated on arrival.
//
// A *slot* is a place in the batch that one sequence (one candidate of a request) holds from its
// admission (`starts`) to its end or preemption (`ends`): the executor keeps its block table,
// sampling parameters and last sampled token there. Within a plan the order is: ends, starts, block
// deltas, rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/typed_id.h"

namespace qserve::worker::plan {

using StepId = TypedId<struct StepIdTag, int64_t>;
using SlotId = TypedId<struct SlotIdTag, int32_t>;
using BlockId = TypedId<struct BlockIdTag, int32_t>;

// Tokens of a KV block: the prefix cache's unit, a page of the device (kernels::kKvPageTokens;
// asserted equal in worker/exec).
inline constexpr int kBlockTokens = 64;

// Sampling with everything decided: defaults applied, seed drawn. Meaning of the fields:
// kernels::SampleRow.
struct Sampling {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  int32_t logprobs = -1;   // -1: none
  int32_t min_tokens = 0;  // banned_ids cannot be drawn before that many output tokens
  std::vector<int32_t> banned_ids;
  std::vector<std::pair<int32_t, float>> logit_bias;

  bool needs_history() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
  friend bool operator==(const Sampling&, const Sampling&) = default;
};

// A sequence takes a slot.
struct SlotStart {
  SlotId slot;
  uint32_t candidate = 0;
  int32_t prompt_tokens = 0;  // length of the prompt: what follows is output
  // Tokens known so far, prompt and output (more than the prompt after a preemption or a resume).
  int32_t tokens = 0;
  Sampling sampling;
  std::vector<int32_t> history;  // those tokens; empty unless sampling.needs_history()
  friend bool operator==(const SlotStart&, const SlotStart&) = default;
};

// Replaces the slot's block table from `first_index` on.
struct BlockDelta {
  SlotId slot;
  int32_t first_index = 0;
  std::vector<BlockId> blocks;
  friend bool operator==(const BlockDelta&, const BlockDelta&) = default;
};

// The token that the step before this one sampled for the slot: lets a step be enqueued before the
// last one is read.
inline constexpr int32_t kTokenFromLastStep = -1;

// Consecutive tokens of one sequence: a prefill chunk (literals) or a decode (one literal or
// kTokenFromLastStep).
struct SequenceRows {
  SlotId slot;
  int32_t first_position = 0;
  std::vector<int32_t> tokens;
  bool sample = false;  // draw the token that follows the last row
  friend bool operator==(const SequenceRows&, const SequenceRows&) = default;
};

struct StepPlan {
  StepId step;
  // The last committed step and the digest of its tokens (DigestTokens): a follower that sampled
  // otherwise stops the group.
  StepId committed_step;
  uint64_t committed_digest = 0;
  bool shutdown = false;  // followers leave their loop; nothing else in the plan
  std::vector<SlotId> ends;
  std::vector<SlotStart> starts;
  std::vector<BlockDelta> block_deltas;
  std::vector<SequenceRows> rows;

  bool empty() const { return rows.empty() && !shutdown; }
  int64_t token_count() const;
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

// Flat little-endian bytes and back. Decode refuses (InvalidArgument) a wrong version, truncation,
// trailing bytes, negative or absurd counts.
std::string Encode(const StepPlan& plan);
absl::StatusOr<StepPlan> Decode(std::string_view bytes);

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};
struct SampledToken {
  SlotId slot;
  int32_t id = 0;
  float logprob = 0;  // only if asked for
  std::vector<TokenLogprob> top;
  friend bool operator==(const SampledToken&, const SampledToken&) = default;
};
// One token for each `sample` entry of the plan, in the plan's order.
struct StepResult {
  StepId step;
  std::vector<SampledToken> tokens;
};

// Digest of (slot, id) pairs in order.
uint64_t DigestTokens(const StepResult& result);

}  // namespace qserve::worker::plan
