// Where every thread leaves what the engine thread is to do: new requests (bounded), cancellations
// (at most one per candidate of an open request), drain and stop. Knows which requests are open,
// from Submit to their last event. Thread-safe; Drain, SetWaiting, Ended and Wait belong to the
// engine thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "worker/engine/request.h"
#include "worker/sched/request.h"

namespace qserve::worker::engine {

struct Submission {
  sched::Request request;
  std::shared_ptr<TokenChannel> channel;
};

class Inbox {
 public:
  using Cancellations = std::map<std::pair<RequestId, int32_t>, FinishReason>;
  struct Batch {
    std::vector<Submission> submissions;
    Cancellations cancellations;
  };

  explicit Inbox(int32_t max_queue) : max_queue_(max_queue) {}

  // ResourceExhausted when max_queue requests are queued or waiting, Unavailable when draining,
  // stopped or failed, AlreadyExists for the id of an open request.
  absl::Status Submit(Submission submission);
  // Ignored unless the request is open. The first reason for a candidate stays.
  void Cancel(RequestId id, int32_t candidate, FinishReason reason);

  void Drain(Batch& batch);          // moves everything into `batch`, which is cleared first
  void SetWaiting(int64_t waiting);  // requests that the scheduler has not started
  void Ended(RequestId id);
  // Returns when there is something to drain, or Stop was called.
  void Wait();

  void StartDraining();
  void Stop();
  // Refuses everything from now on: the engine has stopped or failed.
  void Close();

  bool draining() const;
  bool stopping() const;
  bool idle() const;       // no request is open
  int64_t queued() const;  // submissions not drained yet

 private:
  const int32_t max_queue_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  // All guarded by mutex_.
  std::vector<Submission> submissions_;
  Cancellations cancellations_;
  absl::flat_hash_map<RequestId, int32_t> open_;  // to the number of candidates
  int64_t waiting_ = 0;
  bool draining_ = false;
  bool stopping_ = false;
  bool closed_ = false;
};

}  // namespace qserve::worker::engine
