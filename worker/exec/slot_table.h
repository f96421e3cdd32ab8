// What a rank knows of the sequences in its batch, from plans alone: block tables, sampling
// parameters, positions, histories. Turns a StepPlan into the inputs of one step and refuses a plan
// that contradicts what came before. Owned and used by ModelExecutor's thread; knows no device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/exec/step_executor.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {

// One step, ready for Llama::Forward. Spans point into the slot table and hold until its next Apply
// or Record; what Record needs holds longer.
struct StepBatch {
  std::vector<int32_t> token_ids;
  std::vector<kernels::SequenceSpan> sequences;
  std::vector<int32_t> logit_rows;
  std::vector<kernels::SampleRow> sampling;  // one a logit row, in the plan's order
  std::vector<int64_t> sequence_numbers;     // of those rows: slots are used again
};

class SlotTable {
 public:
  SlotTable(const ExecutorLimits& limits, int32_t vocab_size);

  // Applies ends, starts, block deltas and rows, in that order. InvalidArgument names what is
  // wrong: ids out of range, a slot used twice or not at all, positions that do not follow, blocks
  // that are missing, more tokens than a step may have. The table is then of no further use.
  absl::StatusOr<StepBatch> Apply(const plan::StepPlan& plan);

  // True if `plan` can only be applied once the steps before it are recorded: a row's penalties
  // depend on what they drew.
  bool NeedsResults(const plan::StepPlan& plan) const;

  // Takes the tokens that a step drew into the histories that penalties need; those of sequences
  // that have ended since are dropped. Steps in their order.
  void Record(const StepBatch& batch, const plan::StepResult& result);

 private:
  struct Slot {
    plan::SlotStart start;
    std::vector<int32_t> block_table;
    std::vector<int32_t> history;  // prompt and output, where sampling needs it
    std::vector<int32_t> bias_ids;
    std::vector<float> bias_values;
    int32_t known_tokens = 0;  // tokens that have a position: prompt, and output as it is drawn
    int32_t next_position =
        -1;                // of the next row; -1 before the first: a prefix hit may skip positions
    bool sampled = false;  // a token was drawn since the start
    bool in_step = false;  // has rows in the plan being applied
    int64_t sequence_number = 0;  // of all that were ever started
  };

  absl::StatusOr<Slot*> Find(plan::SlotId id);
  absl::Status End(plan::SlotId id);
  absl::Status Start(const plan::SlotStart& start);
  absl::Status SetBlocks(const plan::BlockDelta& delta);
  absl::Status CheckSampling(const plan::Sampling& sampling) const;
  absl::Status CheckRows(const Slot& slot, const plan::SequenceRows& rows) const;
  absl::Status AddRows(const plan::SequenceRows& rows, StepBatch& batch);
  kernels::SampleRow SampleRowOf(const Slot& slot) const;

  const ExecutorLimits limits_;
  const int32_t vocab_size_;
  std::vector<std::optional<Slot>> slots_;
  int64_t sequences_started_ = 0;
};

}  // namespace qserve::worker::exec
