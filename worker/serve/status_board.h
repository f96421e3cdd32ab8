// The replica's status, sampled 20 times a second on a thread of its own: what WatchStatus sends,
// what grpc.health.v1 says and what the metrics show. Health means progress: a replica is alive
// while its last step finished recently or it has no work.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "qserve/v1/worker.pb.h"
#include "worker/engine/engine.h"
#include "worker/serve/served_model.h"

namespace qserve::worker::serve {

// A step that takes longer than this with work pending means no progress.
inline constexpr Duration kProgressTimeout = std::chrono::seconds(30);

class StatusBoard {
 public:
  // `on_sample(status)` runs on the board's thread after each sample.
  StatusBoard(const ServedModel& model, engine::Engine& engine, const Clock& clock,
              Metrics& metrics, std::function<void(const v1::WatchStatusResponse&)> on_sample);
  ~StatusBoard();

  v1::WatchStatusResponse Current() const;  // any thread
  // Samples at once, for changes that must not wait for the next turn (drain).
  void Poke();

 private:
  void Work();
  v1::WatchStatusResponse Sample();
  void RegisterMetrics(Metrics& metrics);

  const ServedModel& model_;
  engine::Engine& engine_;
  const Clock& clock_;
  const std::string epoch_;
  const TimePoint start_;
  std::function<void(const v1::WatchStatusResponse&)> on_sample_;
  TimePoint busy_since_{};  // board thread only; when work was first seen without a step since
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  v1::WatchStatusResponse current_;  // guarded by mutex_
  bool stopping_ = false;            // guarded by mutex_
  bool poked_ = false;               // guarded by mutex_
  std::thread thread_;
};

}  // namespace qserve::worker::serve
