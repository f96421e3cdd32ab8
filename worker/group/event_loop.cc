#include "worker/group/event_loop.h"

#include <poll.h>

#include <vector>

#include "common/check.h"

namespace qserve::worker::group {

void EventLoop::Watch(int fd, short events, Handler handler) {
  entries_[fd] = Entry{events, next_id_++, std::move(handler)};
}

void EventLoop::SetEvents(int fd, short events) {
  const auto found = entries_.find(fd);
  QSERVE_CHECK(found != entries_.end());
  found->second.events = events;
}

void EventLoop::Forget(int fd) { entries_.erase(fd); }

void EventLoop::RunOnce(Duration max_wait) {
  std::vector<pollfd> polled;
  std::vector<uint64_t> ids;
  for (const auto& [fd, entry] : entries_) {
    polled.push_back({fd, entry.events, 0});
    ids.push_back(entry.id);
  }
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(max_wait);
  if (poll(polled.data(), polled.size(), static_cast<int>(wait.count())) <= 0) return;
  for (size_t i = 0; i < polled.size(); ++i) {
    if (polled[i].revents == 0) continue;
    const auto found = entries_.find(polled[i].fd);
    if (found == entries_.end() || found->second.id != ids[i]) continue;
    // A copy, since the handler may forget its own descriptor.
    const Handler handler = found->second.handler;
    handler(polled[i].revents);
  }
}

}  // namespace qserve::worker::group
