// Which steps are recorded (CUDA graphs), and which recording serves a step: pure functions of the
// plan and the limits, so that every rank of a group takes the same. Used by rank.cc, which records
// at start-up, and by ModelExecutor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/exec/slot_table.h"
#include "worker/exec/step_executor.h"

namespace qserve::worker::exec {

// Row counts of the recordings, ascending: 1, 2, 4, 8, then by 8 up to 256, by 64 up to 1024 and by
// 256 beyond; the last is the largest decoding step that the limits allow. A step of fewer rows
// computes the recording's, so the distances bound what is computed for nothing.
std::vector<int32_t> RecordedRows(const ExecutorLimits& limits);

// The key of the recording that a step replays: its row count; 0 for none. Recorded are decoding
// steps: every sequence has one row, and its next token is drawn.
uint64_t StepKey(const StepBatch& batch, std::span<const int32_t> recorded_rows);

}  // namespace qserve::worker::exec
