// Runs plans on a rank's model, on a thread of its own. The same on leader and followers: every
// rank checks the plan, computes it, and knows the tokens that rank 0 drew. On a device that works
// while the host prepares, the next step is begun before the last one is read, unless its inputs
// depend on what the last one drew (penalties), or collectives wait for the device.
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
  // and see. Only then what the device still does is waited for.
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

  // A step that the device has been given; its results come into here.
  struct Begun {
    plan::StepId step;
    StepBatch batch;
    std::vector<kernels::SampledToken> sampled;  // on rank 0
    std::vector<int32_t> ids;                    // of all slots, on other ranks
  };
  enum class Move { kBegin, kFinish, kLeave };

  void Loop();
  absl::Status TakeProcessor();
  Move NextMove(std::unique_lock<std::mutex>& lock);
  bool MustFinishFirst(const plan::StepPlan& next) const;
  absl::Status Begin(const plan::StepPlan& plan);
  absl::StatusOr<plan::StepResult> FinishOldest();
  void FinishAll(bool publish);
  void Publish(plan::StepResult result);
  absl::Status CheckCommitted(const plan::StepPlan& plan) const;
  plan::StepResult ResultOf(const Begun& begun) const;

  Rank& rank_;
  const std::function<void()> on_failure_;

  // How many steps the device may be given before the oldest is read.
  const size_t depth_;

  // Of the executor's thread.
  SlotTable slots_;
  std::deque<Drawn> drawn_;  // of the last steps, oldest first
  std::optional<plan::StepId> last_step_;
  std::deque<Begun> begun_;  // oldest first; stay where they are while the device writes

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<plan::StepPlan> waiting_;  // guarded by mutex_, as are the next ones
  std::deque<plan::StepId> in_flight_;  // enqueued and not awaited
  std::deque<plan::StepResult> finished_;
  absl::Status failure_;
  bool busy_ = false;      // a step is begun, or being begun
  bool awaiting_ = false;  // somebody waits in Await
  bool closed_ = false;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace qserve::worker::exec
