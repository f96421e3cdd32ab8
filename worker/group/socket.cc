#include "worker/group/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "common/status_macros.h"

namespace qserve::worker::group {
namespace {

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using AddressList = std::unique_ptr<addrinfo, FreeAddresses>;

absl::StatusOr<AddressList> Resolve(const Endpoint& endpoint, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* list = nullptr;
  const std::string port = std::to_string(endpoint.port);
  const int error = getaddrinfo(endpoint.host.c_str(), port.c_str(), &hints, &list);
  if (error != 0) {
    return absl::UnavailableError(
        fmt::format("cannot resolve {}: {}", endpoint.host, gai_strerror(error)));
  }
  return AddressList(list);
}

void SetNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

absl::StatusOr<Endpoint> ToEndpoint(const sockaddr_storage& address, socklen_t length) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  const int error =
      getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(),
                  port.data(), port.size(), NI_NUMERICHOST | NI_NUMERICSERV);
  if (error != 0) return absl::InternalError(fmt::format("getnameinfo: {}", gai_strerror(error)));
  return Endpoint{host.data(), static_cast<uint16_t>(std::strtoul(port.data(), nullptr, 10))};
}

absl::StatusOr<UniqueFd> ConnectOne(const addrinfo& address, TimePoint deadline, int wake_fd) {
  UniqueFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("socket", errno);
  if (connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return ErrnoStatus("connect", errno);
    RETURN_IF_ERROR(WaitFor(fd.get(), POLLOUT, deadline, wake_fd));
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) return ErrnoStatus("connect", error);
  }
  SetNoDelay(fd.get());
  return fd;
}

}  // namespace

absl::Status ErrnoStatus(std::string_view what, int error) {
  return absl::UnavailableError(fmt::format("{}: {}", what, std::strerror(error)));
}

std::string Endpoint::ToString() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is not HOST:PORT with a port of 0 to 65535", text.substr(0, 256)));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return wrong();
  std::string_view host = text.substr(0, colon);
  const std::string_view port_text = text.substr(colon + 1);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return wrong();
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return wrong();
  }
  uint16_t port = 0;
  const char* end = port_text.data() + port_text.size();
  const auto [stop, error] = std::from_chars(port_text.data(), end, port);
  if (port_text.empty() || error != std::errc() || stop != end) return wrong();
  return Endpoint{std::string(host), port};
}

absl::StatusOr<UniqueFd> Listen(const Endpoint& at) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(at, true));
  const addrinfo& address = *list;
  UniqueFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("socket", errno);
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd.get(), address.ai_addr, address.ai_addrlen) != 0 || listen(fd.get(), 128) != 0) {
    return ErrnoStatus(fmt::format("cannot listen on {}", at.ToString()), errno);
  }
  return fd;
}

absl::StatusOr<UniqueFd> Accept(int listener) {
  UniqueFd fd(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd.valid()) {
    SetNoDelay(fd.get());
    return fd;
  }
  if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) {
    return absl::NotFoundError("no connection is waiting");
  }
  return ErrnoStatus("accept", errno);
}

absl::StatusOr<UniqueFd> Connect(const Endpoint& to, TimePoint deadline, int wake_fd) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(to, false));
  absl::Status last = absl::UnavailableError(fmt::format("{} has no address", to.host));
  for (const addrinfo* address = list.get(); address != nullptr; address = address->ai_next) {
    absl::StatusOr<UniqueFd> fd = ConnectOne(*address, deadline, wake_fd);
    if (fd.ok()) return fd;
    last = fd.status();
    if (absl::IsCancelled(last)) break;
  }
  return absl::Status(last.code(),
                      fmt::format("{}: {}", to.ToString(), std::string(last.message())));
}

absl::StatusOr<Endpoint> LocalEndpoint(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus("getsockname", errno);
  }
  return ToEndpoint(address, length);
}

absl::StatusOr<Endpoint> PeerEndpoint(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus("getpeername", errno);
  }
  return ToEndpoint(address, length);
}

absl::Status WaitFor(int fd, short events, TimePoint deadline, int wake_fd) {
  while (true) {
    int timeout_ms = -1;
    if (deadline != kNever) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      if (left.count() <= 0) return absl::DeadlineExceededError("timed out");
      timeout_ms = static_cast<int>(std::min<int64_t>(left.count(), 1'000'000));
    }
    std::array<pollfd, 2> polled{{{fd, events, 0}, {wake_fd, POLLIN, 0}}};
    const int ready = poll(polled.data(), polled.size(), timeout_ms);
    if (ready < 0 && errno != EINTR) return ErrnoStatus("poll", errno);
    if (ready <= 0) continue;
    if (polled[1].revents != 0) return absl::CancelledError("aborted");
    if (polled[0].revents != 0) return absl::OkStatus();
  }
}

absl::Status SendAll(int fd, std::string_view bytes, TimePoint deadline, int wake_fd) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(WaitFor(fd, POLLOUT, deadline, wake_fd));
    } else if (errno != EINTR) {
      return ErrnoStatus("send", errno);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> NewWakeFd() {
  UniqueFd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus("eventfd", errno);
  return fd;
}

void SignalWakeFd(int fd) {
  const uint64_t one = 1;
  // The only possible failure is a counter that is full, and then the descriptor is readable
  // already.
  [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof(one));
}

}  // namespace qserve::worker::group
