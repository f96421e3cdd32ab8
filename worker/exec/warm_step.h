// Steps of nobody's tokens, run by rank.cc at start-up: to see that every kernel and wire is there,
// to make the device allocate what the largest steps need before the KV cache takes the rest, and
// to be recorded. Sequences have pages of their own as far as the KV cache has pages.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "worker/exec/step_executor.h"
#include "worker/model/llama.h"

namespace qserve::worker::exec {

class WarmStep {
 public:
  // `rows` sequences of one token at position 0, each with a block table as long as any can be, all
  // of whose next tokens are drawn.
  static WarmStep Decode(const ExecutorLimits& limits, int32_t rows);
  // As many sequences as a step may have, one of them with all the tokens that the others leave:
  // what passes from the host is the most that any step has.
  static WarmStep Mixed(const ExecutorLimits& limits);
  // As many tokens as a step may have, in sequences as long as any may be; nothing is drawn.
  static WarmStep Prefill(const ExecutorLimits& limits);

  // Pages that are written to: 0 to pages() - 1; never more than limits.blocks, if that is known
  // (not 0).
  int32_t pages() const { return pages_; }

  WarmStep(WarmStep&&) = default;
  WarmStep& operator=(WarmStep&&) = default;

  // Holds while this lives and is not moved.
  model::StepInputs inputs() const {
    return {.token_ids = tokens_,
            .sequences = sequences_,
            .logit_rows = logit_rows_,
            .sampling = sampling_};
  }

 private:
  WarmStep() = default;
  void AddSequence(int64_t rows);
  void AssignPages(const ExecutorLimits& limits);

  int32_t pages_ = 0;
  // Block tables, one within the other; what the spans point to stays when this is moved.
  std::vector<int32_t> block_table_;
  std::vector<int32_t> tokens_;
  std::vector<kernels::SequenceSpan> sequences_;
  std::vector<int32_t> logit_rows_;
  std::vector<kernels::SampleRow> sampling_;
};

}  // namespace qserve::worker::exec
