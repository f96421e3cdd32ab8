// Runs plans on a rank's model, on a thread of its own. The same on leader and followers: every
// rank checks the plan, computes it, and knows the tokens that rank 0 drew.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/exec/rank.h"
#include "worker/exec/slot_table.h"
#include "worker/exec/step_executor.h"

namespace qserve::worker::exec {

class ModelExecutor final : public StepExecutor {
 public:
  // `rank` must outlive the executor, whose thread is its only user from now on. When a step fails
  // the group's collectives are aborted, so that no rank waits for this one, and `on_failure` is
  // called once, on that thread: it must make whoever waits for something else (the next plan) come
  // and see.
  explicit ModelExecutor(Rank& rank, std::function<void()> on_failure = {});
  // Aborts the group's collectives if a step is still running.
  ~ModelExecutor() override;

  const ExecutorLimits& limits() const override { return rank_.limits(); }

  // One thread calls both. A plan that contradicts earlier ones, or whose committed tokens are not
  // those that this rank had, is an error of its step (InvalidArgument, DataLoss); after any error
  // every call returns it.
  absl::Status Enqueue(const plan::StepPlan& plan) override;
  absl::StatusOr<plan::StepResult> Await(plan::StepId step) override;

 private:
  // What was drawn in a step, for comparison with what the leader commits.
  struct Drawn {
    plan::StepId step;
    uint64_t digest = 0;
  };

  void Loop();
  absl::StatusOr<plan::StepResult> RunStep(const plan::StepPlan& plan);
  absl::Status CheckCommitted(const plan::StepPlan& plan) const;
  absl::StatusOr<plan::StepResult> ResultOf(const plan::StepPlan& plan, const StepBatch& batch,
                                            const std::vector<kernels::SampledToken>& sampled);

  Rank& rank_;
  const std::function<void()> on_failure_;

  // Of the executor's thread.
  SlotTable slots_;
  std::deque<Drawn> drawn_;  // of the last steps, oldest first
  std::optional<plan::StepId> last_step_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<plan::StepPlan> waiting_;  // guarded by mutex_, as are the next ones
  std::deque<plan::StepId> in_flight_;  // enqueued and not awaited
  std::deque<plan::StepResult> finished_;
  absl::Status failure_;
  bool running_ = false;
  bool closed_ = false;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace qserve::worker::exec
