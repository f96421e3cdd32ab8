// A list behind a mutex; the reader takes all of it at once.
#include "worker/engine/token_channel.h"

#include <utility>

namespace qserve::worker::engine {

TokenChannel::TokenChannel(std::function<void()> on_ready) : on_ready_(std::move(on_ready)) {}

void TokenChannel::Push(TokenEvent event) {
  bool was_empty = false;
  {
    const std::lock_guard lock(mutex_);
    was_empty = events_.empty();
    events_.push_back(std::move(event));
  }
  if (was_empty && on_ready_) on_ready_();
}

void TokenChannel::TakeAll(std::vector<TokenEvent>& events) {
  events.clear();
  const std::lock_guard lock(mutex_);
  std::swap(events, events_);
}

std::vector<TokenEvent> TokenChannel::TakeAll() {
  std::vector<TokenEvent> events;
  TakeAll(events);
  return events;
}

}  // namespace qserve::worker::engine
