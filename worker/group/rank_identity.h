// Who a process is in its group, as its supervisor told it. Read once, first thing in main. It
// travels through an inherited socket (the control socket), whose number alone stands in the
// environment: the secret is on no command line and in no environment.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/hello.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

struct RankIdentity {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this node
  int local_size = 1;
  int node_rank = 0;
  uint64_t generation = 0;   // of the group; a process of another one is refused everywhere
  std::string group_secret;  // made anew for each group
  std::string config_hash;
  // The rendezvous; of no use (port 0) in a group of one.
  Endpoint rendezvous;
  // Numeric address of this node's interface to the others: where to listen for inter-rank traffic.
  // Loopback on a single node.
  std::string bind_host;
  Duration heartbeat_interval = std::chrono::milliseconds(500);
  int supervisor_pid = 0;
  int control_fd = -1;  // taken over by Heartbeat

  // What this rank says of itself when it connects to others.
  Hello ToHello() const;
};

// Name of the environment variable with the control socket's number; internal to the project.
inline constexpr const char* kRankFdVariable = "QSERVE_RANK_FD";

// nullopt when this process was not started by a supervisor. Otherwise arranges that the process
// dies with its supervisor, ignores SIGPIPE, removes the variable from the environment and returns
// who it is. Main thread, before other threads exist. An error means that the process must exit.
absl::StatusOr<std::optional<RankIdentity>> RankIdentityFromEnvironment();

// For the supervisor: the first message on the control socket.
std::string EncodeIdentity(const RankIdentity& identity);

}  // namespace qserve::worker::group
