#include "worker/serve/worker_service.h"

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "common/rpc/errors.h"
#include "common/rpc/finished_call.h"

namespace qserve::worker::serve {
namespace {

constexpr int kMaxAbortIds = 1024;
constexpr auto kRepeatInterval = std::chrono::seconds(1);

// The parts that change without meaning anything new are left out of the comparison.
bool SaysTheSame(v1::WatchStatusResponse a, v1::WatchStatusResponse b) {
  a.clear_sequence_number();
  b.clear_sequence_number();
  a.clear_uptime();
  b.clear_uptime();
  return a.SerializeAsString() == b.SerializeAsString();
}

grpc::Status ShuttingDown() {
  return rpc::MakeError(grpc::StatusCode::UNAVAILABLE, "this replica is shutting down",
                        {.reason = rpc::kDraining});
}

}  // namespace

// One watcher: at most one write in flight; what comes meanwhile is replaced by the newest.
class WorkerService::Watch final : public grpc::ServerWriteReactor<v1::WatchStatusResponse> {
 public:
  explicit Watch(WorkerService& service) : service_(service) {}

  void Offer(const v1::WatchStatusResponse& status) {
    const std::lock_guard lock(mutex_);
    next_ = status;
    WriteIfFree();
  }
  void End(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    end_ = status;
    FinishIfFree();
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok && !end_) end_ = grpc::Status(grpc::StatusCode::CANCELLED, "watcher gone");
    FinishIfFree();
    WriteIfFree();
  }
  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled")); }
  void OnDone() override {
    {
      const std::lock_guard lock(service_.mutex_);
      service_.watches_.erase(this);
    }
    delete this;
  }

 private:
  void WriteIfFree() {
    if (writing_ || end_ || !next_) return;
    const auto now = std::chrono::steady_clock::now();
    if (sequence_number_ > 0 && now - written_at_ < kRepeatInterval &&
        SaysTheSame(*next_, written_))
      return;
    written_ = *std::exchange(next_, std::nullopt);
    written_.set_sequence_number(++sequence_number_);
    written_at_ = now;
    writing_ = true;
    StartWrite(&written_);
  }
  void FinishIfFree() {
    if (writing_ || !end_ || finished_) return;
    finished_ = true;
    Finish(*end_);
  }

  WorkerService& service_;
  std::mutex mutex_;
  std::optional<v1::WatchStatusResponse> next_;
  std::optional<grpc::Status> end_;
  v1::WatchStatusResponse written_;
  std::chrono::steady_clock::time_point written_at_;
  int64_t sequence_number_ = 0;
  bool writing_ = false;
  bool finished_ = false;
};

grpc::ServerWriteReactor<v1::WatchStatusResponse>* WorkerService::WatchStatus(
    grpc::CallbackServerContext*, const v1::WatchStatusRequest*) {
  auto* watch = new Watch(*this);  // deletes itself in OnDone
  bool ended = false;
  {
    const std::lock_guard lock(mutex_);
    watches_.insert(watch);
    ended = ended_;
  }
  if (ended) {
    watch->End(ShuttingDown());
  } else {
    watch->Offer(control_.status());
  }
  return watch;
}

grpc::ServerUnaryReactor* WorkerService::Drain(grpc::CallbackServerContext* context,
                                               const v1::DrainRequest*,
                                               v1::DrainResponse* response) {
  control_.drain();
  const v1::WatchStatusResponse status = control_.status();
  response->set_remaining(status.running() + status.waiting());
  return rpc::FinishNow(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* WorkerService::Abort(grpc::CallbackServerContext* context,
                                               const v1::AbortRequest* request,
                                               v1::AbortResponse* response) {
  if (request->request_ids_size() > kMaxAbortIds) {
    return rpc::FinishNow(
        context, rpc::MakeInvalidArgument(
                     {{"request_ids", fmt::format("has {} entries, at most {} are allowed",
                                                  request->request_ids_size(), kMaxAbortIds)}},
                     ""));
  }
  int32_t aborted = 0;
  for (const std::string& id : request->request_ids()) aborted += control_.abort(id) ? 1 : 0;
  response->set_aborted(aborted);
  return rpc::FinishNow(context, grpc::Status::OK);
}

void WorkerService::Publish(const v1::WatchStatusResponse& status) {
  const std::lock_guard lock(mutex_);
  for (Watch* watch : watches_) watch->Offer(status);
}

void WorkerService::EndWatches() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  for (Watch* watch : watches_) watch->End(ShuttingDown());
}

}  // namespace qserve::worker::serve
