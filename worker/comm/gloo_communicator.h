// Collectives between processes over TCP by Gloo's point-to-point buffers: the CPU backend's
// tensor-parallel transport. Its own all-reduce is never used, since the order of its sums depends
// on the size of the message. Made by worker/exec/rank.cc.
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

struct GlooOptions {
  int rank = 0;
  int size = 1;
  std::string bind_host;  // numeric address of the interface that the other ranks reach; the kernel
                          // picks the ports
  std::string key_prefix = "gloo/";  // of this communicator's keys in the store
  Duration connect_timeout = std::chrono::seconds(120);
  // The longest that one rank may be behind another within a step. A dead peer is noticed at once,
  // a stopped one by its supervisor; this is the last resort.
  Duration collective_timeout = std::chrono::minutes(10);
  // AllReduceSum of at most this many bytes is one exchange of whole messages, above it each rank
  // adds a part. Same bits.
  int64_t one_shot_bytes = 64 << 10;
};

// Connects to every other rank; all must call, in processes that ignore SIGPIPE (Gloo writes to
// sockets that peers may have closed). `store` is needed during the call only. `backend`'s
// memory must be host memory; failures are latched there, and after the first one every collective
// fails.
absl::StatusOr<std::unique_ptr<Communicator>> CreateGlooCommunicator(const GlooOptions& options,
                                                                     group::KeyValueStore* store,
                                                                     kernels::Backend* backend);

}  // namespace qserve::worker::comm
