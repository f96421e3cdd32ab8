// poll(2) with handlers: what a supervisor waits for, all on its one thread (a single-threaded
// parent may fork safely and needs no locks). Used by the supervisor and the rendezvous server. One
// thread; owns no descriptors.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "common/clock.h"

namespace qserve::worker::group {

class EventLoop {
 public:
  using Handler = std::function<void(short revents)>;
  // Calls `handler` when `fd` has one of `events` (or an error). Replaces an earlier handler of the
  // same descriptor.
  void Watch(int fd, short events, Handler handler);
  void SetEvents(int fd, short events);
  // Also from within handlers. Call before closing the descriptor.
  void Forget(int fd);
  // Waits until something happens, at most `max_wait`, and calls the handlers of all that did.
  void RunOnce(Duration max_wait);

 private:
  struct Entry {
    short events = 0;
    uint64_t id = 0;  // tells a descriptor from a later one with the same number
    Handler handler;
  };
  std::map<int, Entry> entries_;
  uint64_t next_id_ = 1;
};

}  // namespace qserve::worker::group
