// A host group between threads of one process, for tests of the engine, its followers and the
// executor.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/comm/host_group.h"

namespace qserve::worker::comm {

// What the ranks share; outlives their groups. Thread-safe.
class ThreadHostHub {
 public:
  explicit ThreadHostHub(int size, Duration timeout = std::chrono::seconds(60));
  int size() const { return static_cast<int>(broadcasts_.size()); }

 private:
  friend class ThreadHostGroup;
  // Waits under `lock` until `ready`. Cancelled for a rank that was aborted, Unavailable for its
  // peers and after the time-out.
  absl::Status Wait(std::unique_lock<std::mutex>& lock, int rank, bool for_ever,
                    const std::function<bool()>& ready);

  const Duration timeout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<std::string>> broadcasts_;  // by receiver
  std::vector<std::deque<std::string>> gathers_;     // by sender
  std::vector<bool> aborted_;
  int arrived_ = 0;
  uint64_t barriers_ = 0;
};

class ThreadHostGroup final : public HostGroup {
 public:
  ThreadHostGroup(ThreadHostHub* hub, int rank) : hub_(hub), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  absl::Status Broadcast(const std::string& bytes) override;
  absl::StatusOr<std::string> ReceiveBroadcast() override;
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) override;
  absl::Status Barrier() override;
  void Abort() override;

 private:
  ThreadHostHub* hub_;
  int rank_;
};

}  // namespace qserve::worker::comm
