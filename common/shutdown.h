// SIGTERM and SIGINT as an event. Made first thing in main, before any thread, so that every thread
// inherits the blocked signals and exactly one place receives them.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace qserve {

class ShutdownSignal {
 public:
  // Blocks SIGTERM and SIGINT in this thread and its future children, ignores SIGPIPE.
  // `on_signal(count)` runs on a thread of this object at each signal: count 1 for the first
  // (drain), 2 for the second (leave at once).
  explicit ShutdownSignal(std::function<void(int count)> on_signal);
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

 private:
  void Watch();

  std::function<void(int)> on_signal_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread watcher_;
};

}  // namespace qserve
