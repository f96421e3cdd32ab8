// A network between a router and a replica that a test can cut (as if the process had died) or
// freeze (as if it had been stopped). Forwards bytes of any number of connections on one thread.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace qserve::integration {

class Relay {
 public:
  explicit Relay(int target_port) : target_port_(target_port) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Loopback(0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    socklen_t size = sizeof(address);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    wake_ = eventfd(0, EFD_CLOEXEC);
    thread_ = std::thread([this] { Work(); });
  }
  ~Relay() {
    Set(kCut);
    thread_.join();
    close(wake_);
  }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // Every connection breaks, and none is taken any more.
  void Cut() { Set(kCut); }
  // Connections stay, and nothing moves.
  void Freeze() { Set(kFrozen); }

 private:
  enum State { kForwarding, kFrozen, kCut };

  static sockaddr_in Loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  void Set(State state) {
    state_ = state;
    const uint64_t one = 1;
    EXPECT_EQ(write(wake_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  }
  void Accept() {
    const int near = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (near < 0) return;
    const int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Loopback(target_port_);
    if (connect(far, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      close(near);
      close(far);
      return;
    }
    pairs_.emplace_back(near, far);
  }
  static bool Forward(int from, int to) {
    std::array<char, 16384> buffer;
    const ssize_t got = recv(from, buffer.data(), buffer.size(), 0);
    for (ssize_t sent = 0; sent < got;) {
      const ssize_t part =
          send(to, buffer.data() + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
      if (part <= 0) return false;
      sent += part;
    }
    return got > 0;
  }
  void Close(std::pair<int, int> ends) {
    close(ends.first);
    close(ends.second);
  }
  void Work() {
    while (state_ != kCut) {
      std::vector<pollfd> polled = {{wake_, POLLIN, 0}};
      const size_t count = state_ == kFrozen ? 0 : pairs_.size();
      if (state_ == kForwarding) polled.push_back({listener_, POLLIN, 0});
      for (size_t i = 0; i < count; ++i) {
        polled.push_back({pairs_[i].first, POLLIN, 0});
        polled.push_back({pairs_[i].second, POLLIN, 0});
      }
      poll(polled.data(), polled.size(), -1);
      if (polled[0].revents != 0) {
        uint64_t ignored = 0;
        EXPECT_EQ(read(wake_, &ignored, sizeof(ignored)), static_cast<ssize_t>(sizeof(ignored)));
        continue;
      }
      if (polled.size() < 2) continue;
      for (size_t i = count; i-- > 0;) {
        const auto [near, far] = pairs_[i];
        bool open = true;
        if (polled[2 + 2 * i].revents != 0) open = Forward(near, far);
        if (open && polled[3 + 2 * i].revents != 0) open = Forward(far, near);
        if (open) continue;
        Close(pairs_[i]);
        pairs_.erase(pairs_.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if (polled[1].revents != 0) Accept();
    }
    close(listener_);
    for (const auto& ends : pairs_) Close(ends);
  }

  const int target_port_;
  int listener_ = -1;
  int port_ = 0;
  int wake_ = -1;
  std::atomic<State> state_{kForwarding};
  std::vector<std::pair<int, int>> pairs_;  // the relay's thread only
  std::thread thread_;
};

}  // namespace qserve::integration
