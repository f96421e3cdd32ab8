// Rank 0 of a replica once its model is loaded: engine, gRPC server, drain. Used by main; blocks
// until the replica ends.
#pragma once

#include <functional>
#include <future>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "worker/comm/host_group.h"
#include "worker/exec/rank.h"
#include "worker/exec/step_executor.h"
#include "worker/flags.h"

namespace qserve::worker {

// Serves until `stop` is ready (then drains and returns OK) or the engine fails (then returns why).
// Followers are told to leave on a clean end. `on_ready(port)` runs once, when requests are taken.
absl::Status RunLeader(const Flags& flags, const exec::Rank& rank, exec::StepExecutor& executor,
                       comm::HostGroup& group, Metrics& metrics, const Clock& clock,
                       std::future<void> stop, const std::function<absl::Status()>& group_status);

}  // namespace qserve::worker
