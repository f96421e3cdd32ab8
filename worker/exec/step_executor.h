// Runs steps. The engine thread enqueues a plan, up to kMaxStepsInFlight ahead, and awaits results
// in order. Implemented by ModelExecutor (a rank's model on a backend, with a thread of its own)
// and by FakeExecutor (tests, simulation: tokens are a function of the sequence's tokens, so that
// losing or reordering any shows).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {

inline constexpr int kMaxStepsInFlight = 2;

// What the scheduler may use.
struct ExecutorLimits {
  int32_t slots = 0;
  int32_t blocks = 0;  // KV blocks of kBlockTokens tokens
  int64_t max_step_tokens = 0;
  int32_t max_model_len = 0;  // positions a sequence may have
  int64_t kv_bytes_per_token = 0;
};

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  virtual const ExecutorLimits& limits() const = 0;
  // Starts a step; does not wait for it. FailedPrecondition when kMaxStepsInFlight are in flight.
  // An error is final: the group must end.
  virtual absl::Status Enqueue(const plan::StepPlan& plan) = 0;
  // Waits for `step`, which must be the oldest in flight.
  virtual absl::StatusOr<plan::StepResult> Await(plan::StepId step) = 0;
};

}  // namespace qserve::worker::exec
