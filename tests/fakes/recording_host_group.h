// The leader's side of a host group of any size whose followers are a list of what was broadcast.
// One thread at a time.
#pragma once

#include <string>
#include <vector>

#include "worker/comm/host_group.h"

namespace qserve::fakes {

class RecordingHostGroup final : public worker::comm::HostGroup {
 public:
  explicit RecordingHostGroup(int size = 1) : size_(size) {}

  int rank() const override { return 0; }
  int size() const override { return size_; }
  absl::Status Broadcast(const std::string& bytes) override {
    if (aborted_) return absl::CancelledError("the group was aborted");
    if (broadcasts_left_ == 0) return absl::UnavailableError("a follower is gone, as asked");
    --broadcasts_left_;
    messages_.push_back(bytes);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ReceiveBroadcast() override {
    return absl::FailedPreconditionError("rank 0 receives nothing");
  }
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) override {
    return std::vector<std::string>(static_cast<size_t>(size_), bytes);
  }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort() override { aborted_ = true; }

  void FailAfter(int64_t broadcasts) { broadcasts_left_ = broadcasts; }
  const std::vector<std::string>& messages() const { return messages_; }

 private:
  const int size_;
  bool aborted_ = false;
  int64_t broadcasts_left_ = -1;  // negative: no limit
  std::vector<std::string> messages_;
};

}  // namespace qserve::fakes
