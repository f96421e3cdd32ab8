// Keeps one replica's state current: a thread that holds its WatchStatus stream open, reconnects
// when it breaks, asks for its models when a new process (epoch) answers, and declares it lost when
// the stream ends or falls silent.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "router/discovery/silence.h"
#include "router/registry/replica.h"

namespace qserve::router {

class Watcher {
 public:
  // References must outlive the watcher.
  Watcher(Replica& replica, const Clock& clock);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

 private:
  void ReadLoop();
  void SilenceLoop();
  void WatchOnce();
  void BreakSilence();
  bool FetchModels();
  bool Stopping() const;

  Replica& replica_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;                   // guarded by mutex_
  grpc::ClientContext* context_ = nullptr;  // of the open stream; guarded by mutex_
  Silence unheard_;                         // guarded by mutex_
  std::thread reader_;
  std::thread silence_;
};

}  // namespace qserve::router
