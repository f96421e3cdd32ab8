// The host group of a single process: every call is satisfied at once. Made by worker/exec/rank.cc.
#pragma once

#include <atomic>

#include "worker/comm/host_group.h"

namespace qserve::worker::comm {

class LocalHostGroup final : public HostGroup {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  absl::Status Broadcast(const std::string&) override { return NotAborted(); }
  absl::StatusOr<std::string> ReceiveBroadcast() override {
    return absl::FailedPreconditionError("rank 0 receives no broadcasts");
  }
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) override {
    if (aborted_) return NotAborted();
    return std::vector<std::string>{bytes};
  }
  absl::Status Barrier() override { return NotAborted(); }
  void Abort() override { aborted_ = true; }

 private:
  absl::Status NotAborted() const {
    return aborted_ ? absl::CancelledError("the host group was aborted") : absl::OkStatus();
  }
  std::atomic<bool> aborted_{false};
};

}  // namespace qserve::worker::comm
