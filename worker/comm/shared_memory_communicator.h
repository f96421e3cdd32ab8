// Collectives between processes of one host through memory that they share: the CPU backend's
// tensor-parallel transport where all ranks are on one machine. Made by worker/exec/rank.cc.
//
// A collective is a turn or more. In a turn every rank writes into its buffer, publishes the turn's
// number and waits until all have published it; then anybody may read what the others wrote. Two
// buffers a rank take turns: a rank that publishes turn n has read all it wanted of turn n - 1, so
// that whoever has seen turn n of everybody may overwrite what it wrote in turn n - 1.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"
#include "worker/group/key_value_store.h"

namespace qserve::worker::comm {

struct SharedMemoryOptions {
  int rank = 0;
  int size = 1;
  std::string key_prefix = "shared/";  // of this communicator's keys in the store
  Duration connect_timeout = std::chrono::seconds(120);
  // The longest that one rank may be behind another within a step. A dead peer is noticed at once,
  // a stopped one by its supervisor; this is the last resort.
  Duration collective_timeout = std::chrono::minutes(10);
  // AllReduceSum of at most this many bytes, or of two ranks, is added by everybody; above it each
  // rank adds a part. Same bits.
  int64_t one_shot_bytes = 64 << 10;
  int64_t buffer_bytes = 512 << 10;  // larger messages go in pieces
};

// All ranks must call. FailedPrecondition on every rank if not all of them can share memory (other
// hosts, containers of their own, no room for it): take another transport then. `store` is needed
// during the call only. `backend`'s memory must be host memory; failures are latched there, and
// after the first one every collective fails.
absl::StatusOr<std::unique_ptr<Communicator>> CreateSharedMemoryCommunicator(
    const SharedMemoryOptions& options, group::KeyValueStore* store, kernels::Backend* backend);

}  // namespace qserve::worker::comm
