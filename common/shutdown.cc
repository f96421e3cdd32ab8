#include "common/shutdown.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>

#include "common/check.h"

namespace qserve {

ShutdownSignal::ShutdownSignal(std::function<void(int)> on_signal)
    : on_signal_(std::move(on_signal)) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  QSERVE_CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  std::signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  QSERVE_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  watcher_ = std::thread([this] { Watch(); });
}

ShutdownSignal::~ShutdownSignal() {
  const uint64_t one = 1;
  QSERVE_CHECK(::write(stop_fd_, &one, sizeof(one)) == sizeof(one));
  watcher_.join();
  ::close(signal_fd_);
  ::close(stop_fd_);
}

void ShutdownSignal::Watch() {
  std::array<pollfd, 2> polled{{{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}}};
  int count = 0;
  while (true) {
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;  // EINTR
    if (polled[1].revents != 0) return;
    signalfd_siginfo info;
    while (::read(signal_fd_, &info, sizeof(info)) == sizeof(info)) on_signal_(++count);
  }
}

}  // namespace qserve
