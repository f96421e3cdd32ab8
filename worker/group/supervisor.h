// What `qserve-worker` started by a user is: a process without model and without gRPC that runs one
// rank per device as children, watches them, and ends the whole group when any of it is lost. It
// restarts nothing: that is for whoever started it.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"

namespace qserve::worker::group {

struct GroupOptions {
  int tensor_parallel_size = 1;  // ranks of the whole group, numbered node by node
  int nodes = 1;
  int node_rank = 0;
  std::string
      rendezvous;  // HOST:PORT; with several nodes: where node 0 listens and the others come
  std::string user_secret;  // with several nodes: the same on all (may be empty: warned about)
  std::string config_hash;  // of every flag that must be equal on all nodes; at most 128 bytes

  Duration heartbeat_timeout = std::chrono::seconds(3);  // of a rank
  Duration node_timeout = std::chrono::seconds(5);       // of another node's supervisor
  Duration start_timeout = std::chrono::seconds(60);     // from a rank's start to its first beat
  Duration join_timeout = std::chrono::minutes(10);      // for all nodes to come
  Duration loss_grace =
      std::chrono::seconds(2);  // for survivors to fail their requests, before SIGKILL
  Duration exit_grace = std::chrono::seconds(30);  // for all ranks to end once one has ended well
  Duration stop_timeout{0};      // from SIGTERM to SIGKILL; 0: as long as the drain takes
  Duration progress_timeout{0};  // of a busy rank's executor; 0: only warned about
};

// InvalidArgument naming what does not fit together.
absl::Status ValidateGroupOptions(const GroupOptions& options);

// Runs the group and returns the process's exit status: 0 when every rank ended with 0 (or was
// stopped before it was ready), the exit status of the rank that failed first if it had one,
// else 1. SIGTERM or SIGINT asks rank 0 to drain; a second one kills. `argv` is this program's own:
// ranks are started with the same. Call on the main thread, before any other thread exists.
int RunSupervisor(const GroupOptions& options, std::span<char* const> argv);

}  // namespace qserve::worker::group
