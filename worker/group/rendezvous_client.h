// A rank's end of the rendezvous: the group's key-value store. Used while a rank starts (host
// group, Gloo); one thread at a time, Abort from any.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/frame.h"
#include "worker/group/hello.h"
#include "worker/group/key_value_store.h"
#include "worker/group/rendezvous_protocol.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

class RendezvousClient final : public KeyValueStore {
 public:
  // As rank hello.index; keeps trying to reach the rendezvous until `deadline`. Errors: SayHello.
  static absl::StatusOr<std::unique_ptr<RendezvousClient>> Create(const Endpoint& rendezvous,
                                                                  const Hello& hello,
                                                                  TimePoint deadline);
  absl::Status Set(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, Duration timeout) override;
  // Pending and later calls return Cancelled. Any thread.
  void Abort() { SignalWakeFd(wake_fd_.get()); }

 private:
  RendezvousClient(UniqueFd wake_fd, FrameChannel channel)
      : wake_fd_(std::move(wake_fd)), channel_(std::move(channel)) {}
  // Sends `request`, returns the answer's type and sets `text` to what it carries.
  absl::StatusOr<FrameType> Ask(const std::string& request, Duration timeout, std::string* text);

  UniqueFd wake_fd_;
  FrameChannel channel_;
};

}  // namespace qserve::worker::group
