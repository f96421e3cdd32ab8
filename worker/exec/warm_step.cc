#include "worker/exec/warm_step.h"

#include <algorithm>
#include <span>

#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {

namespace {

int64_t PagesFor(int64_t tokens) { return (tokens + plan::kBlockTokens - 1) / plan::kBlockTokens; }

}  // namespace

void WarmStep::AddSequence(int64_t rows) {
  sequences_.push_back({.first_row = std::ssize(tokens_), .row_count = rows});
  tokens_.resize(tokens_.size() + static_cast<size_t>(rows));
}

// One page after another to the rows there are. A table goes on as long as any can be, over pages
// that its rows do not reach.
void WarmStep::AssignPages(const ExecutorLimits& limits) {
  int64_t pages = 0;
  for (const kernels::SequenceSpan& sequence : sequences_) pages += PagesFor(sequence.row_count);
  const auto length = static_cast<size_t>(PagesFor(limits.max_model_len));
  block_table_.resize(static_cast<size_t>(pages) + length);
  pages_ =
      static_cast<int32_t>(limits.blocks > 0 ? std::min<int64_t>(pages, limits.blocks) : pages);
  for (size_t i = 0; i < block_table_.size(); ++i) {
    block_table_[i] = static_cast<int32_t>(i % static_cast<size_t>(pages_));
  }
  size_t first = 0;
  for (kernels::SequenceSpan& sequence : sequences_) {
    sequence.block_table = std::span(block_table_).subspan(first, length);
    first += static_cast<size_t>(PagesFor(sequence.row_count));
  }
}

WarmStep WarmStep::Decode(const ExecutorLimits& limits, int32_t rows) {
  WarmStep step;
  for (int32_t row = 0; row < rows; ++row) {
    step.AddSequence(1);
    step.logit_rows_.push_back(row);
    kernels::SampleRow& sampling = step.sampling_.emplace_back();
    sampling.slot = row;
    sampling.temperature = 0;
  }
  step.AssignPages(limits);
  return step;
}

WarmStep WarmStep::Prefill(const ExecutorLimits& limits) {
  WarmStep step;
  for (int64_t left = limits.max_step_tokens; left > 0;) {
    const int64_t rows = std::min<int64_t>(left, limits.max_model_len);
    step.AddSequence(rows);
    left -= rows;
  }
  step.AssignPages(limits);
  return step;
}

WarmStep WarmStep::Mixed(const ExecutorLimits& limits) {
  WarmStep step;
  const int64_t sequences = std::min<int64_t>(limits.slots, limits.max_step_tokens);
  int64_t left = limits.max_step_tokens;
  for (int64_t behind = sequences - 1; behind >= 0; --behind) {
    const int64_t rows = behind == 0 ? std::min<int64_t>(left, limits.max_model_len) : 1;
    step.AddSequence(rows);
    left -= rows;
  }
  step.AssignPages(limits);
  return step;
}

}  // namespace qserve::worker::exec
