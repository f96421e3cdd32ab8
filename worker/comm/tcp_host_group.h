// The host group between processes: a star of TCP connections, rank 0 in the middle. Made by
// worker/exec/rank.cc; used by the engine thread of rank 0 and the follower loops of the others.
//
// Plain framed TCP rather than Gloo, because Gloo's buffers have one size known to both ends and
// one time-out after which the whole context is lost. Here a follower waits for an idle leader for
// ever and still sees its death at once (the stream ends), a message says its own size and is
// capped, and a connection proves that it belongs to the group before anything it says is read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/comm/host_group.h"
#include "worker/group/key_value_store.h"

namespace qserve::worker::comm {

struct TcpHostGroupOptions {
  int rank = 0;
  int size = 1;
  std::string bind_host;  // numeric address of the interface that the other ranks reach; the kernel
                          // picks the port
  uint64_t generation = 0;  // as in worker/group's RankIdentity, with the next two
  std::string group_secret;
  std::string config_hash;
  Duration connect_timeout = std::chrono::seconds(120);
  // Of everything but a follower's wait for the next broadcast. Ranks load their weights between
  // two barriers.
  Duration timeout = std::chrono::minutes(30);
  size_t max_message_bytes = 64 << 20;
};

// Connects; all ranks must call. `store` is needed during the call only. Errors: Unavailable or
// DeadlineExceeded when others did not come, PermissionDenied when refused (other generation or
// configuration).
absl::StatusOr<std::unique_ptr<HostGroup>> CreateTcpHostGroup(const TcpHostGroupOptions& options,
                                                              group::KeyValueStore* store);

}  // namespace qserve::worker::comm
