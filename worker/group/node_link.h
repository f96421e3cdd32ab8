// The connection of another node's supervisor to node 0's: joining the group, then signs of life
// and news both ways. Used by the supervisor of nodes 1, 2, ..., on its thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/frame.h"
#include "worker/group/hello.h"
#include "worker/group/rendezvous_protocol.h"

namespace qserve::worker::group {

class NodeLink {
 public:
  // Tries until it is let in, refused for good (PermissionDenied), out of time (DeadlineExceeded)
  // or woken (Cancelled): nodes may start in any order, and the name of node 0 may not resolve yet.
  static absl::StatusOr<std::unique_ptr<NodeLink>> Join(const Endpoint& rendezvous,
                                                        const Hello& hello, TimePoint deadline,
                                                        int wake_fd);

  int fd() const { return channel_.fd(); }
  const Welcome& welcome() const { return welcome_; }
  // This node's end of the connection: the interface that reaches the others.
  const Endpoint& local_endpoint() const { return local_; }
  const Endpoint& rendezvous_endpoint() const { return remote_; }
  void Send(const NodeMessage& message);
  // When readable: calls `handler` for each message, with kLost when the connection has ended.
  void Read(const std::function<void(const NodeMessage&)>& handler);

  Duration silence{0};  // since anything came, counted by the supervisor

 private:
  NodeLink(FrameChannel channel, Welcome welcome, Endpoint local, Endpoint remote)
      : channel_(std::move(channel)),
        welcome_(std::move(welcome)),
        local_(std::move(local)),
        remote_(std::move(remote)) {}
  FrameChannel channel_;
  Welcome welcome_;
  Endpoint local_;
  Endpoint remote_;
};

}  // namespace qserve::worker::group
