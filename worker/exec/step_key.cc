#include "worker/exec/step_key.h"

#include <algorithm>

namespace qserve::worker::exec {

std::vector<int32_t> RecordedRows(const ExecutorLimits& limits) {
  const auto most = static_cast<int32_t>(std::min<int64_t>(limits.slots, limits.max_step_tokens));
  std::vector<int32_t> rows;
  for (int32_t count = 1; count < most;) {
    rows.push_back(count);
    count += count < 8 ? count : count < 256 ? 8 : count < 1024 ? 64 : 256;
  }
  if (most > 0) rows.push_back(most);
  return rows;
}

uint64_t StepKey(const StepBatch& batch, std::span<const int32_t> recorded_rows) {
  const size_t rows = batch.token_ids.size();
  if (rows == 0 || batch.sequences.size() != rows || batch.logit_rows.size() != rows) return 0;
  const auto found =
      std::lower_bound(recorded_rows.begin(), recorded_rows.end(), static_cast<int32_t>(rows));
  return found == recorded_rows.end() ? 0 : static_cast<uint64_t>(*found);
}

}  // namespace qserve::worker::exec
