#include "router/discovery/watcher.h"

#include <algorithm>

#include "common/log.h"

namespace qserve::router {
namespace {

constexpr auto kFirstBackoff = std::chrono::milliseconds(100);
constexpr auto kLongestBackoff = std::chrono::seconds(2);
constexpr auto kModelsTimeout = std::chrono::seconds(3);  // within kReportTimeout
constexpr auto kSilenceCheck = std::chrono::milliseconds(500);

}  // namespace

Watcher::Watcher(Replica& replica, const Clock& clock)
    : replica_(replica), clock_(clock), unheard_(kSilenceCheck) {
  reader_ = std::thread([this] { ReadLoop(); });
  silence_ = std::thread([this] { SilenceLoop(); });
}

Watcher::~Watcher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  wake_.notify_all();
  reader_.join();
  silence_.join();
}

bool Watcher::Stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void Watcher::ReadLoop() {
  auto backoff = std::chrono::duration_cast<Duration>(kFirstBackoff);
  while (true) {
    const TimePoint begin = clock_.Now();
    WatchOnce();
    if (clock_.Now() - begin > std::chrono::seconds(5)) backoff = kFirstBackoff;
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, backoff, [this] { return stopping_; })) return;
    backoff = std::min<Duration>(backoff * 2, kLongestBackoff);
  }
}

void Watcher::WatchOnce() {
  grpc::ClientContext context;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    context_ = &context;
    unheard_.Break(clock_.Now());
  }
  auto reader = replica_.worker().WatchStatus(&context, v1::WatchStatusRequest());
  v1::WatchStatusResponse report;
  std::string epoch;
  while (reader->Read(&report)) {
    BreakSilence();  // before the models are asked for, which has a time of its own
    // A new process may serve other models than its predecessor at this address.
    if (report.epoch() != epoch) {
      if (!FetchModels()) {
        context.TryCancel();
        break;
      }
      LOG_INFO("replica {} is up: epoch {}, tensor parallel {}", replica_.address(), report.epoch(),
               report.tensor_parallel_size());
      epoch = report.epoch();
    }
    replica_.OnReport(report);
  }
  const grpc::Status status = reader->Finish();
  {
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
  }
  replica_.OnLost();
  if (!epoch.empty() && !Stopping())
    LOG_WARN("replica {} is lost: {}", replica_.address(), status.error_message());
}

void Watcher::BreakSilence() {
  const std::lock_guard lock(mutex_);
  unheard_.Break(clock_.Now());
}

bool Watcher::FetchModels() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kModelsTimeout);
  v1::ListModelsResponse response;
  if (!replica_.inference().ListModels(&context, v1::ListModelsRequest(), &response).ok())
    return false;
  replica_.OnModels({response.models().begin(), response.models().end()});
  return true;
}

void Watcher::SilenceLoop() {
  std::unique_lock lock(mutex_);
  // A stopped process keeps its connections: only its silence tells.
  while (!wake_.wait_for(lock, kSilenceCheck, [this] { return stopping_; })) {
    const Duration silence = unheard_.Check(clock_.Now());
    if (context_ != nullptr && silence > kReportTimeout) context_->TryCancel();
  }
}

}  // namespace qserve::router
