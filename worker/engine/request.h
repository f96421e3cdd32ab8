// What the gRPC edge hands to the engine and what comes back. Everything is decided here: text is
// tokenized, defaults are applied, limits are checked; the engine knows token ids only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/plan/step_plan.h"
#include "worker/sched/request.h"

namespace qserve::worker::engine {

class TokenChannel;

// The scheduler's own terms are the engine's, and the edge's.
using sched::FinishReason;
using sched::RequestId;
using sched::ResumeCandidate;
using sched::TokenEvent;
using sched::Usage;

struct EngineRequest {
  RequestId id;
  std::vector<int32_t> prompt;    // not empty
  plan::Sampling sampling;        // banned_ids = stop ids when min_tokens > 0 (filled by the edge)
  std::vector<int32_t> stop_ids;  // end-of-sequence ids (unless ignore_eos) and stop_token_ids
  int32_t max_tokens = 0;         // per candidate, >= 1, prompt + max_tokens <= max_model_len
  int32_t candidates = 1;         // n
  int32_t priority = 0;           // larger goes first; ties by order of Submit
  uint64_t cache_salt = 0;        // prefix blocks are shared within one salt only
  bool use_prefix_cache = true;
  TimePoint arrival{};
  TimePoint deadline = kNever;            // whole request: ends with kDeadline and what there is
  TimePoint queue_deadline = kNever;      // still waiting then: ends with kDeadline and no token
  std::vector<ResumeCandidate> resume;    // empty or one per candidate
  std::shared_ptr<TokenChannel> channel;  // shared by the engine (pushes) and the edge (pops)
};

}  // namespace qserve::worker::engine
