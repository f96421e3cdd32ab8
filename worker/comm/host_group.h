// Small byte strings between the processes of a group: plans from the leader to its followers,
// results and barriers at start-up. Blocking; one thread at a time per object (Abort: any thread).
// A peer's death or silence beyond the time-out is an error (Unavailable), never a hang.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qserve::worker::comm {

class HostGroup {
 public:
  virtual ~HostGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Rank 0's `bytes` to all. Rank 0 returns when they are handed over, not when all have taken
  // them. Followers may wait for ever for the next message of an idle leader (liveness is watched
  // elsewhere: heartbeats), others are bounded by the time-out.
  virtual absl::Status Broadcast(const std::string& bytes) = 0;  // rank 0
  virtual absl::StatusOr<std::string> ReceiveBroadcast() = 0;    // other ranks

  // Everybody's bytes on rank 0, in rank order; an empty vector elsewhere.
  virtual absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) = 0;

  // Returns when all have called it.
  virtual absl::Status Barrier() = 0;

  // Unblocks every pending and later call with Cancelled. Any thread.
  virtual void Abort() = 0;
};

}  // namespace qserve::worker::comm
