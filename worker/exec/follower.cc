#include "worker/exec/follower.h"

#include <deque>
#include <string>

#include "common/status_macros.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {
namespace {

// Steps enqueued and not yet awaited. Results are of no interest to a follower, errors are.
class InFlight {
 public:
  explicit InFlight(StepExecutor& executor) : executor_(executor) {}

  absl::Status Add(const plan::StepPlan& plan) {
    if (steps_.size() == kMaxStepsInFlight) RETURN_IF_ERROR(AwaitOldest());
    RETURN_IF_ERROR(executor_.Enqueue(plan));
    steps_.push_back(plan.step);
    return absl::OkStatus();
  }

  absl::Status AwaitAll() {
    while (!steps_.empty()) RETURN_IF_ERROR(AwaitOldest());
    return absl::OkStatus();
  }

 private:
  absl::Status AwaitOldest() {
    const plan::StepId oldest = steps_.front();
    steps_.pop_front();
    return executor_.Await(oldest).status();
  }

  StepExecutor& executor_;
  std::deque<plan::StepId> steps_;
};

}  // namespace

absl::Status RunFollower(comm::HostGroup& group, StepExecutor& executor) {
  InFlight in_flight(executor);
  while (true) {
    const absl::StatusOr<std::string> bytes = group.ReceiveBroadcast();
    if (!bytes.ok()) {
      // The group may have been aborted because a step failed here: that is then the reason to
      // give.
      if (absl::IsCancelled(bytes.status())) RETURN_IF_ERROR(in_flight.AwaitAll());
      return bytes.status();
    }
    ASSIGN_OR_RETURN(const plan::StepPlan plan, plan::Decode(*bytes));
    if (plan.shutdown) return in_flight.AwaitAll();
    RETURN_IF_ERROR(in_flight.Add(plan));
  }
}

}  // namespace qserve::worker::exec
