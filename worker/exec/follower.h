// What every rank but the leader does all its life: receive a plan, run it. A follower decides
// nothing.
#pragma once

#include "absl/status/status.h"
#include "worker/comm/host_group.h"
#include "worker/exec/step_executor.h"

namespace qserve::worker::exec {

// Runs the leader's plans until one says shutdown (OK) or something fails: a plan that cannot be
// read, a step, the group. On the caller's thread. `executor` should abort `group` when a step
// fails (ModelExecutor's on_failure), so that a failed follower of an idle leader leaves at once.
absl::Status RunFollower(comm::HostGroup& group, StepExecutor& executor);

}  // namespace qserve::worker::exec
