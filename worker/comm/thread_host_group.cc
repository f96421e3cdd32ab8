#include "worker/comm/thread_host_group.h"

#include <algorithm>

#include "common/status_macros.h"

namespace qserve::worker::comm {

ThreadHostHub::ThreadHostHub(int size, Duration timeout)
    : timeout_(timeout),
      broadcasts_(static_cast<size_t>(size)),
      gathers_(static_cast<size_t>(size)),
      aborted_(static_cast<size_t>(size)) {}

absl::Status ThreadHostHub::Wait(std::unique_lock<std::mutex>& lock, int rank, bool for_ever,
                                 const std::function<bool()>& ready) {
  const TimePoint deadline = std::chrono::steady_clock::now() + timeout_;
  while (true) {
    if (aborted_[static_cast<size_t>(rank)]) {
      return absl::CancelledError("the host group was aborted");
    }
    if (ready()) return absl::OkStatus();
    if (std::find(aborted_.begin(), aborted_.end(), true) != aborted_.end()) {
      return absl::UnavailableError("a rank has left the host group");
    }
    if (for_ever) {
      changed_.wait(lock);
    } else if (changed_.wait_until(lock, deadline) == std::cv_status::timeout) {
      return absl::UnavailableError("a rank did not come in time");
    }
  }
}

absl::Status ThreadHostGroup::Broadcast(const std::string& bytes) {
  if (rank_ != 0) return absl::FailedPreconditionError("only rank 0 broadcasts");
  std::unique_lock lock(hub_->mutex_);
  RETURN_IF_ERROR(hub_->Wait(lock, rank_, false, [&] {
    return std::find(hub_->aborted_.begin(), hub_->aborted_.end(), true) == hub_->aborted_.end();
  }));
  for (size_t r = 1; r < hub_->broadcasts_.size(); ++r) hub_->broadcasts_[r].push_back(bytes);
  hub_->changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<std::string> ThreadHostGroup::ReceiveBroadcast() {
  if (rank_ == 0) return absl::FailedPreconditionError("rank 0 receives no broadcasts");
  std::unique_lock lock(hub_->mutex_);
  std::deque<std::string>& inbox = hub_->broadcasts_[static_cast<size_t>(rank_)];
  RETURN_IF_ERROR(hub_->Wait(lock, rank_, true, [&] { return !inbox.empty(); }));
  std::string bytes = std::move(inbox.front());
  inbox.pop_front();
  return bytes;
}

absl::StatusOr<std::vector<std::string>> ThreadHostGroup::Gather(const std::string& bytes) {
  std::unique_lock lock(hub_->mutex_);
  hub_->gathers_[static_cast<size_t>(rank_)].push_back(bytes);
  hub_->changed_.notify_all();
  std::vector<std::string> all;
  if (rank_ != 0) {
    RETURN_IF_ERROR(hub_->Wait(lock, rank_, false, [] { return true; }));
    return all;
  }
  RETURN_IF_ERROR(hub_->Wait(lock, rank_, false, [&] {
    return std::none_of(hub_->gathers_.begin(), hub_->gathers_.end(),
                        [](const auto& sent) { return sent.empty(); });
  }));
  for (std::deque<std::string>& sent : hub_->gathers_) {
    all.push_back(std::move(sent.front()));
    sent.pop_front();
  }
  return all;
}

absl::Status ThreadHostGroup::Barrier() {
  std::unique_lock lock(hub_->mutex_);
  const uint64_t round = hub_->barriers_;
  if (++hub_->arrived_ == size()) {
    hub_->arrived_ = 0;
    ++hub_->barriers_;
    hub_->changed_.notify_all();
  }
  return hub_->Wait(lock, rank_, false, [&] { return hub_->barriers_ != round; });
}

void ThreadHostGroup::Abort() {
  const std::lock_guard lock(hub_->mutex_);
  hub_->aborted_[static_cast<size_t>(rank_)] = true;
  hub_->changed_.notify_all();
}

}  // namespace qserve::worker::comm
