// What the gRPC edge hands to the engine and what comes back. Everything is decided here: text is
// tokenized, defaults are applied, limits are checked; the engine knows token ids only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/typed_id.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::engine {

class TokenChannel;

// Engine-internal, unique in a process's life; not the client's request_id.
using RequestId = TypedId<struct RequestIdTag, int64_t>;

enum class FinishReason { kNone, kStop, kLength, kCancelled, kDeadline };

// Continues a candidate that another replica began: all ids already emitted.
struct ResumeCandidate {
  std::vector<int32_t> output_ids;
  bool finished = false;  // nothing more to do for it
};

struct EngineRequest {
  RequestId id;
  std::vector<int32_t> prompt;  // not empty
  plan::Sampling sampling;      // banned_ids = stop ids when min_tokens > 0 (filled by the edge)
  std::vector<int32_t> stop_ids;  // end-of-sequence ids (unless ignore_eos) and stop_token_ids
  int32_t max_tokens = 0;         // per candidate, >= 1, prompt + max_tokens <= max_model_len
  int32_t candidates = 1;         // n
  int32_t priority = 0;           // larger goes first; ties by arrival
  uint64_t cache_salt = 0;        // prefix blocks are shared within one salt only
  bool use_prefix_cache = true;
  TimePoint arrival{};
  TimePoint deadline = kNever;        // whole request: ends with kDeadline and what there is
  TimePoint queue_deadline = kNever;  // still waiting then: ends with kDeadline and no token
  std::vector<ResumeCandidate> resume;    // empty or one per candidate
  std::shared_ptr<TokenChannel> channel;  // shared by the engine (pushes) and the edge (pops)
};

struct Usage {
  int32_t prompt_tokens = 0;
  // Of the prompt, found in the prefix cache by the first candidate; timing information, not part
  // of schedule-independence.
  int32_t cached_tokens = 0;
  Duration queue_time{};
  Duration time_to_first_token{};
};

// One candidate got tokens, or ended. Events of one candidate come in order; the last one has a
// finish reason, and exactly one has.
struct TokenEvent {
  RequestId request;
  int32_t candidate = 0;
  std::vector<plan::SampledToken> tokens;  // slot is meaningless here
  FinishReason finish = FinishReason::kNone;
  int32_t matched_stop_id = -1;  // with kStop
  absl::Status error;            // not OK: the engine failed; the stream ends with this
  // As known so far: with every event from the first token on, and with the last.
  Usage usage;
};

}  // namespace qserve::worker::engine
