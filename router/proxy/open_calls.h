// The calls that clients have open at this router: how many there are, and a way to end them all
// when the router itself must go. Thread-safe; owned by the service, outlives every call.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_set>

#include "common/metrics/metrics.h"

namespace qserve::router {

// Calls open at a time; more are refused with RESOURCE_EXHAUSTED.
inline constexpr int64_t kMaxOpenCalls = 20'000;

// Implemented by the proxies.
class ClientCall {
 public:
  virtual ~ClientCall() = default;
  virtual void CutShort() = 0;  // any thread: end soon, with UNAVAILABLE DRAINING
};

class OpenCalls {
 public:
  explicit OpenCalls(prometheus::Gauge& gauge) : gauge_(gauge) {}

  // Room for a call, false if there are too many. Every success is followed by a Release.
  bool Reserve();
  // The last thing that a call does: afterwards the router may be gone.
  void Release();

  // A call between these can be cut short.
  void Add(ClientCall* call);
  void Remove(ClientCall* call);
  void CutAll();

  int64_t count() const { return count_; }

 private:
  prometheus::Gauge& gauge_;
  std::atomic<int64_t> count_{0};
  std::mutex mutex_;
  std::unordered_set<ClientCall*> calls_;  // guarded by mutex_
};

}  // namespace qserve::router
