// A StepExecutor that tells the supervisor how the real one gets on. Made in main around the
// ModelExecutor of every rank; used by the same thread.
#pragma once

#include "worker/exec/step_executor.h"
#include "worker/group/heartbeat.h"

namespace qserve::worker {

class ProgressExecutor final : public exec::StepExecutor {
 public:
  // Both must outlive this.
  ProgressExecutor(exec::StepExecutor& executor, group::Heartbeat& heartbeat)
      : executor_(executor), heartbeat_(heartbeat) {}

  const exec::ExecutorLimits& limits() const override { return executor_.limits(); }

  absl::Status Enqueue(const plan::StepPlan& plan) override {
    absl::Status status = executor_.Enqueue(plan);
    if (status.ok() && ++in_flight_ == 1) heartbeat_.SetBusy(true);
    return status;
  }

  absl::StatusOr<plan::StepResult> Await(plan::StepId step) override {
    absl::StatusOr<plan::StepResult> result = executor_.Await(step);
    heartbeat_.NoteProgress();
    if (--in_flight_ == 0) heartbeat_.SetBusy(false);
    return result;
  }

 private:
  exec::StepExecutor& executor_;
  group::Heartbeat& heartbeat_;
  int in_flight_ = 0;
};

}  // namespace qserve::worker
