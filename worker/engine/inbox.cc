// One mutex, held for moments, between the edge's threads and the engine's.
#include "worker/engine/inbox.h"

#include <fmt/format.h>

namespace qserve::worker::engine {

absl::Status Inbox::Submit(Submission submission) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || stopping_) return absl::UnavailableError("the engine has stopped");
    if (draining_) return absl::UnavailableError("this replica is draining");
    if (static_cast<int64_t>(submissions_.size()) + waiting_ >= max_queue_) {
      return absl::ResourceExhaustedError(
          fmt::format("the queue is full: {} requests are waiting", max_queue_));
    }
    const auto [place, inserted] =
        open_.try_emplace(submission.request.id, submission.request.candidates);
    if (!inserted) return absl::AlreadyExistsError("this request id is in use");
    submissions_.push_back(std::move(submission));
  }
  ready_.notify_one();
  return absl::OkStatus();
}

void Inbox::Cancel(RequestId id, int32_t candidate, FinishReason reason) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(id);
    if (found == open_.end() || candidate >= found->second) return;
    cancellations_.try_emplace({id, candidate < 0 ? -1 : candidate}, reason);
  }
  ready_.notify_one();
}

void Inbox::Drain(Batch& batch) {
  batch.submissions.clear();
  batch.cancellations.clear();
  const std::lock_guard lock(mutex_);
  waiting_ += static_cast<int64_t>(submissions_.size());
  std::swap(batch.submissions, submissions_);
  std::swap(batch.cancellations, cancellations_);
}

void Inbox::SetWaiting(int64_t waiting) {
  const std::lock_guard lock(mutex_);
  waiting_ = waiting;
}

void Inbox::Ended(RequestId id) {
  const std::lock_guard lock(mutex_);
  open_.erase(id);
}

void Inbox::Wait() {
  std::unique_lock lock(mutex_);
  ready_.wait(lock,
              [this] { return stopping_ || !submissions_.empty() || !cancellations_.empty(); });
}

void Inbox::StartDraining() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

void Inbox::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_all();
}

void Inbox::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

bool Inbox::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

bool Inbox::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

bool Inbox::idle() const {
  const std::lock_guard lock(mutex_);
  return open_.empty();
}

int64_t Inbox::queued() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(submissions_.size());
}

}  // namespace qserve::worker::engine
