// SIGTERM and SIGINT as a descriptor for the supervisor's event loop. On its thread, the only one.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "worker/group/socket.h"

namespace qserve::worker::group {

// Blocks the two signals while it lives and restores the mask at the end.
class StopSignals {
 public:
  StopSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, &before_);
    fd_.Reset(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  }
  ~StopSignals() { sigprocmask(SIG_SETMASK, &before_, nullptr); }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  int fd() const { return fd_.get(); }
  // Takes one pending signal; false if there was none.
  bool Take() {
    signalfd_siginfo info{};
    return read(fd_.get(), &info, sizeof(info)) == sizeof(info);
  }

 private:
  UniqueFd fd_;
  sigset_t before_{};
};

}  // namespace qserve::worker::group
