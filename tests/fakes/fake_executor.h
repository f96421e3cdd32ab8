// A StepExecutor without a model. The token that follows a sequence is a hash of all its tokens
// (and of seed and candidate), read back through the slot's block table from what earlier rows
// wrote: a wrong table, a lost or repeated token, a stale prefix block or a block shared by mistake
// changes the output. Plans that no scheduler should make are refused with Internal. Used by tests
// and the simulation, on the engine's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/exec/step_executor.h"
#include "worker/plan/step_plan.h"

namespace qserve::fakes {

struct FakeExecutorOptions {
  worker::exec::ExecutorLimits limits{.slots = 16,
                                      .blocks = 64,
                                      .max_step_tokens = 8192,
                                      .max_model_len = 4096,
                                      .kv_bytes_per_token = 1};
  int32_t vocabulary = 1000;
  int64_t fail_enqueue_of_step = -1;  // Enqueue of this step fails
  int64_t fail_await_of_step = -1;    // Await of this step fails
  Duration step_latency{};            // Await sleeps that long
};

// What a step consisted of.
struct FakeStep {
  int64_t rows = 0;  // M of every linear
  int64_t decode_rows = 0;
  int64_t samples = 0;
  int64_t starts = 0;
  int64_t from_last_step = 0;  // rows that took kTokenFromLastStep
};

class FakeExecutor final : public worker::exec::StepExecutor {
 public:
  explicit FakeExecutor(FakeExecutorOptions options);

  const worker::exec::ExecutorLimits& limits() const override { return options_.limits; }
  absl::Status Enqueue(const worker::plan::StepPlan& plan) override;
  absl::StatusOr<worker::plan::StepResult> Await(worker::plan::StepId step) override;

  const std::vector<FakeStep>& steps() const { return steps_; }  // in order, since the start
  int64_t total_rows() const;

 private:
  struct Slot {
    bool active = false;
    int32_t prompt_tokens = 0;
    uint32_t candidate = 0;
    worker::plan::Sampling sampling;
    std::vector<worker::plan::BlockId> table;
    std::vector<int32_t> history;  // only if the sampling needs it
    int32_t last_sampled = -1;
    int64_t last_sampled_step = -1;
  };
  struct Cell {
    int32_t token = -1;
    int32_t position = -1;
  };

  absl::Status ApplyTables(const worker::plan::StepPlan& plan);
  absl::Status ApplyStart(const worker::plan::SlotStart& start);
  absl::Status ApplyDelta(const worker::plan::BlockDelta& delta);
  void CountTable(const Slot& slot, int by);
  absl::StatusOr<Slot*> ActiveSlot(worker::plan::SlotId id);
  absl::Status WriteRow(Slot& slot, int32_t token, int32_t position);
  absl::Status RunRows(const worker::plan::SequenceRows& rows, int64_t step, FakeStep& record,
                       worker::plan::StepResult& result);
  absl::StatusOr<worker::plan::SampledToken> Sample(Slot& slot, int32_t position);

  const FakeExecutorOptions options_;
  std::vector<Slot> slots_;
  std::vector<Cell> cells_;          // [blocks, kBlockTokens]
  std::vector<int32_t> table_uses_;  // active tables that hold each block
  std::vector<int32_t> scratch_;
  std::deque<worker::plan::StepResult> results_;
  std::vector<FakeStep> steps_;
  int64_t last_step_ = 0;
};

}  // namespace qserve::fakes
