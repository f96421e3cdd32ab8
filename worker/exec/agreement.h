// Small agreements between ranks at start-up. Every rank calls the same ones in the same order.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/host_group.h"

namespace qserve::worker::exec {

// The smallest of all ranks' values, on every rank.
absl::StatusOr<int64_t> AgreeOnMinimum(comm::HostGroup& group, int64_t value);

// FailedPrecondition on every rank if they do not all bring the same value; names `what` and the
// ranks that differ from rank 0.
absl::Status RequireEqual(comm::HostGroup& group, std::string_view what, uint64_t value);

}  // namespace qserve::worker::exec
