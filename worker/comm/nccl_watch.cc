#include "worker/comm/nccl_watch.h"

#include <fmt/format.h>

#include "common/check.h"
#include "common/log.h"

namespace qserve::worker::comm {
namespace {

TimePoint Now() { return SteadyClock().Now(); }

}  // namespace

void NcclWatch::Begin() {
  QSERVE_CHECK(!begun());
  guard_ = std::thread([this] { Guard(); });
  asker_ = std::thread([this] { Ask(); });
}

void NcclWatch::Close() {
  if (!begun()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    free_.notify_all();
  }
  guard_.join();  // its abort ends what the other one may hang in
  asker_.join();
}

bool NcclWatch::Enter() {
  std::unique_lock lock(mutex_);
  ++waiting_;
  free_.wait(lock, [this] { return !calling_ || Over(); });
  --waiting_;
  if (Over()) return false;
  calling_ = true;
  return true;
}

void NcclWatch::Leave() {
  const std::lock_guard lock(mutex_);
  QSERVE_CHECK(calling_);
  calling_ = false;
  if (waiting_ > 0) free_.notify_all();
}

void NcclWatch::Break(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  BreakLocked(reason);
}

// The step fails before anything is ended on the device: whoever then stops waiting for it finds
// the failure.
void NcclWatch::BreakLocked(const std::string& reason) {
  if (!failure_.empty()) return;
  failure_ = reason;
  owner_->Fail({kernels::StatusCode::kDevice, "a collective of the group failed: " + reason});
  changed_.notify_all();
  free_.notify_all();
}

std::string NcclWatch::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool NcclWatch::MayMark() const {
  const std::lock_guard lock(mutex_);
  return !mark_pending_;
}

void NcclWatch::MarkPlaced() {
  const std::lock_guard lock(mutex_);
  mark_pending_ = true;
  mark_placed_ = Now();
}

void NcclWatch::Ask() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, options_.interval, [this] { return Over(); })) return;
    }
    const std::string trouble = Trouble();
    if (trouble.empty() || !failure().empty()) continue;
    LOG_ERROR("rank {}: {}", options_.rank, trouble);
    Break(trouble);
  }
}

std::string NcclWatch::Trouble() {
  if (!Enter()) return "";
  const bool failed = api_->State() == NcclResult::kFailed;
  const std::string text = failed ? api_->ErrorText() : "";
  Leave();
  if (failed) return text;
  if (MayMark()) return "";
  // Without the turn: it is CUDA that is asked.
  const NcclResult reached = api_->MarkState();
  if (reached == NcclResult::kFailed) return api_->ErrorText();
  if (reached == NcclResult::kOk) {
    const std::lock_guard lock(mutex_);
    mark_pending_ = false;
  }
  return "";
}

void NcclWatch::Guard() {
  std::unique_lock lock(mutex_);
  while (!Over()) {
    changed_.wait_for(lock, options_.interval, [this] { return Over(); });
    if (Over() || !mark_pending_ || Now() - mark_placed_ < options_.step_timeout) continue;
    const std::string late =
        fmt::format("the GPU did not get through its work in {:.1f} s: a rank does not answer",
                    ToSeconds(options_.step_timeout));
    LOG_ERROR("rank {}: {}", options_.rank, late);
    BreakLocked(late);
  }
  // Nobody begins a call any more. One that is under way is given a moment; if it hangs, the abort
  // is what may end it.
  ++waiting_;
  const bool idle = free_.wait_for(lock, options_.courtesy, [this] { return !calling_; });
  --waiting_;
  const bool well = failure_.empty() && idle;
  lock.unlock();
  if (well) {
    End();
  } else {
    api_->Abort();
  }
}

// Disconnects; all ranks are about to, unless they died.
void NcclWatch::End() {
  constexpr Duration kFarewell = std::chrono::seconds(10);
  const TimePoint deadline = Now() + kFarewell;
  NcclResult result = api_->Disconnect();
  while (result == NcclResult::kInProgress && Now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    result = api_->State();
  }
  if (result != NcclResult::kOk) api_->Abort();
}

}  // namespace qserve::worker::comm
