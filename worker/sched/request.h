// What the scheduler is asked for and what it answers, in its own terms: no channels, no threads.
// The engine passes these on (worker/engine/request.h gives them its namespace).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/typed_id.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::sched {

// Unique in a process's life; not the client's request_id.
using RequestId = TypedId<struct RequestIdTag, int64_t>;

enum class FinishReason { kNone, kStop, kLength, kCancelled, kDeadline };

// Continues a candidate that another replica began: all ids already emitted. They count as output.
struct ResumeCandidate {
  std::vector<int32_t> output_ids;
  bool finished = false;  // nothing more to do for it, and no event about it
};

struct Request {
  RequestId id;
  std::vector<int32_t> prompt;  // not empty
  plan::Sampling sampling;
  std::vector<int32_t> stop_ids;
  int32_t max_tokens = 0;  // per candidate, >= 1
  int32_t candidates = 1;
  int32_t priority = 0;     // larger goes first; ties by order of Submit
  uint64_t cache_salt = 0;  // prefix blocks are shared within one salt only
  bool use_prefix_cache = true;
  TimePoint arrival{};
  TimePoint deadline = kNever;
  TimePoint queue_deadline = kNever;
  std::vector<ResumeCandidate> resume;  // empty or one per candidate
};

struct Usage {
  int32_t prompt_tokens = 0;
  // Of the prompt, found in the prefix cache by the first candidate to start. Tells about timing,
  // and is not part of schedule-independence.
  int32_t cached_tokens = 0;
  Duration queue_time{};           // until the candidate was first scheduled, or until its end
  Duration time_to_first_token{};  // zero if there was none
};

// One candidate got a token, or ended, or both. Events of one candidate come in order; the last one
// has a finish reason, and exactly one has. A stop id is a token too.
struct TokenEvent {
  RequestId request;
  int32_t candidate = 0;
  std::optional<plan::SampledToken> token;  // slot is meaningless here
  FinishReason finish = FinishReason::kNone;
  int32_t matched_stop_id = -1;  // with kStop
  absl::Status error;            // not OK: the engine failed; the stream ends with this
  // As known so far: with every event from the first token on, and with the last.
  Usage usage;
};

}  // namespace qserve::worker::sched
