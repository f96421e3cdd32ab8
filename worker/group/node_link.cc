#include "worker/group/node_link.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/log.h"
#include "common/status_macros.h"

namespace qserve::worker::group {
namespace {

constexpr Duration kAttempt = std::chrono::seconds(5);
constexpr Duration kPause = std::chrono::milliseconds(500);
constexpr Duration kSendTimeout = std::chrono::seconds(1);

TimePoint Now() { return std::chrono::steady_clock::now(); }

}  // namespace

absl::StatusOr<std::unique_ptr<NodeLink>> NodeLink::Join(const Endpoint& rendezvous,
                                                         const Hello& hello, TimePoint deadline,
                                                         int wake_fd) {
  std::string last;
  while (true) {
    Welcome welcome;
    absl::StatusOr<FrameChannel> channel = SayHello(
        rendezvous, hello, kMaxFrameBytes, std::min(deadline, Now() + kAttempt), -1, &welcome);
    if (channel.ok()) {
      ASSIGN_OR_RETURN(Endpoint local, LocalEndpoint(channel->fd()));
      ASSIGN_OR_RETURN(Endpoint remote, PeerEndpoint(channel->fd()));
      return std::unique_ptr<NodeLink>(new NodeLink(*std::move(channel), std::move(welcome),
                                                    std::move(local), std::move(remote)));
    }
    if (absl::IsPermissionDenied(channel.status())) return channel.status();
    const std::string why(channel.status().message());
    if (why != last) LOG_INFO("waiting for the rendezvous: {}", why);
    last = why;
    if (Now() + kPause >= deadline) {
      return absl::DeadlineExceededError(
          fmt::format("could not join the group at {}: {}", rendezvous.ToString(), why));
    }
    const absl::Status paused = WaitFor(-1, 0, Now() + kPause, wake_fd);
    if (absl::IsCancelled(paused)) return paused;
  }
}

void NodeLink::Send(const NodeMessage& message) {
  // A failed connection is noticed when it is read.
  [[maybe_unused]] const absl::Status sent = channel_.Send(Encode(message), Now() + kSendTimeout);
}

void NodeLink::Read(const std::function<void(const NodeMessage&)>& handler) {
  const absl::Status read = channel_.reader().ReadFrom(fd());
  silence = Duration(0);
  while (true) {
    absl::StatusOr<std::optional<std::string>> frame = channel_.reader().Next();
    if (!frame.ok())
      return handler({NodeMessage::Type::kLost, std::string(frame.status().message())});
    if (!frame->has_value()) break;
    const std::optional<NodeMessage> message = DecodeNodeMessage(**frame);
    if (!message.has_value())
      return handler({NodeMessage::Type::kLost, "it sent something malformed"});
    handler(*message);
  }
  if (!read.ok()) handler({NodeMessage::Type::kLost, std::string(read.message())});
}

}  // namespace qserve::worker::group
