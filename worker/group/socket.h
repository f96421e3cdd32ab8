// TCP sockets with deadlines: listening, connecting, sending whole buffers. Used by the rendezvous,
// the supervisor and worker/comm's host group. Every socket is non-blocking, close-on-exec and
// without Nagle's delay. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/unique_fd.h"

namespace qserve::worker::group {

// "UNAVAILABLE: what: reason of errno".
absl::Status ErrnoStatus(std::string_view what, int error);

// A host (name or numeric address) and a port.
struct Endpoint {
  std::string host;
  uint16_t port = 0;
  std::string ToString() const;  // host:port, [v6]:port
  bool is_wildcard() const { return host == "0.0.0.0" || host == "::"; }
};

// "host:port" or "[v6]:port"; InvalidArgument says what is wrong.
absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text);

// Listens on `at.host` (resolved; that address only) and `at.port`, 0 = picked by the kernel.
absl::StatusOr<UniqueFd> Listen(const Endpoint& at);

// The next connection; NotFound when there is none.
absl::StatusOr<UniqueFd> Accept(int listener);

// Unavailable when refused or unreachable, DeadlineExceeded, Cancelled when `wake_fd` (-1: none)
// becomes readable.
absl::StatusOr<UniqueFd> Connect(const Endpoint& to, TimePoint deadline, int wake_fd);

// Numeric addresses of the two ends.
absl::StatusOr<Endpoint> LocalEndpoint(int fd);
absl::StatusOr<Endpoint> PeerEndpoint(int fd);

// Waits for `events` (poll's) on `fd`. kNever waits for ever. Errors as for Connect.
absl::Status WaitFor(int fd, short events, TimePoint deadline, int wake_fd);

// Sends everything. Unavailable when the peer is gone.
absl::Status SendAll(int fd, std::string_view bytes, TimePoint deadline, int wake_fd);

// An eventfd, which becomes readable when signalled and stays so.
absl::StatusOr<UniqueFd> NewWakeFd();
void SignalWakeFd(int fd);

}  // namespace qserve::worker::group
