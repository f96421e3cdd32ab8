// Tokens of one request on their way from the engine thread to the edge. Push never blocks: what
// may be queued is bounded by the request itself (candidates * max_tokens). Several pushes before a
// pop are merged by the reader, so a slow client costs memory of its own request and nobody's time.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "worker/engine/request.h"

namespace qserve::worker::engine {

class TokenChannel {
 public:
  // `on_ready` is called (from the pushing thread, without locks held, must not block) when the
  // channel goes from empty to not empty. A reader may take an event before the call that announces
  // it: the call can come late, so what it captures must live as long as the channel. Set before
  // the request is submitted.
  explicit TokenChannel(std::function<void()> on_ready);

  void Push(TokenEvent event);  // engine thread
  // Edge: all that is there, in place of what `events` held. Its memory is what later events are
  // pushed into, so that a reader who always brings the same list spares the engine's thread.
  void TakeAll(std::vector<TokenEvent>& events);
  std::vector<TokenEvent> TakeAll();

 private:
  std::function<void()> on_ready_;
  std::mutex mutex_;
  std::vector<TokenEvent> events_;  // guarded by mutex_
};

}  // namespace qserve::worker::engine
