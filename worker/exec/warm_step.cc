#include "worker/exec/warm_step.h"

#include <algorithm>

#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {

WarmStep::WarmStep(const ExecutorLimits& limits)
    : block_table_(static_cast<size_t>((limits.max_model_len + plan::kBlockTokens - 1) /
                                       plan::kBlockTokens)) {}

void WarmStep::AddSequence(int64_t rows) {
  sequences_.push_back({.first_row = std::ssize(tokens_),
                        .row_count = rows,
                        .first_position = 0,
                        .block_table = block_table_});
  tokens_.resize(tokens_.size() + static_cast<size_t>(rows));
}

WarmStep WarmStep::Decode(const ExecutorLimits& limits, int32_t rows) {
  WarmStep step(limits);
  for (int32_t row = 0; row < rows; ++row) {
    step.AddSequence(1);
    step.logit_rows_.push_back(row);
    kernels::SampleRow& sampling = step.sampling_.emplace_back();
    sampling.slot = row;
    sampling.temperature = 0;
  }
  return step;
}

WarmStep WarmStep::Prefill(const ExecutorLimits& limits) {
  WarmStep step(limits);
  for (int64_t left = limits.max_step_tokens; left > 0;) {
    const int64_t rows = std::min<int64_t>(left, limits.max_model_len);
    step.AddSequence(rows);
    left -= rows;
  }
  return step;
}

WarmStep WarmStep::Mixed(const ExecutorLimits& limits) {
  WarmStep step(limits);
  const int64_t sequences = std::min<int64_t>(limits.slots, limits.max_step_tokens);
  int64_t left = limits.max_step_tokens;
  for (int64_t behind = sequences - 1; behind >= 0; --behind) {
    const int64_t rows = behind == 0 ? std::min<int64_t>(left, limits.max_model_len) : 1;
    step.AddSequence(rows);
    left -= rows;
  }
  return step;
}

}  // namespace qserve::worker::exec
