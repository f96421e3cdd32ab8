#include "router/registry/replica.h"

#include <algorithm>

namespace qserve::router {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;

grpc::ChannelArguments ChannelOptions() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // the proxies retry, and know what was sent
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return arguments;
}

}  // namespace

Replica::Replica(int64_t index, std::string address)
    : index_(index),
      address_(std::move(address)),
      channel_(grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(),
                                         ChannelOptions())),
      inference_(v1::InferenceService::NewStub(channel_)),
      worker_(v1::WorkerService::NewStub(channel_)) {}

void Replica::OnReport(const v1::WatchStatusResponse& report) {
  const std::lock_guard lock(mutex_);
  known_ = true;
  present_ = true;
  report_ = report;
}

void Replica::OnModels(std::vector<v1::Model> models) {
  const std::lock_guard lock(mutex_);
  models_ = std::move(models);
}

void Replica::OnLost() {
  const std::lock_guard lock(mutex_);
  present_ = false;
  for (OpenCall* call : open_) call->OnReplicaLost();
}

Replica::View Replica::Look() const {
  const std::lock_guard lock(mutex_);
  View view;
  view.known = known_;
  view.report = report_;
  view.in_flight = static_cast<int64_t>(open_.size());
  view.picked = picked_;
  view.ready = present_ && report_.making_progress() && !report_.draining();
  return view;
}

std::vector<v1::Model> Replica::Models() const {
  const std::lock_guard lock(mutex_);
  return models_;
}

bool Replica::Serves(const std::string& model) const {
  const std::lock_guard lock(mutex_);
  return std::find(report_.models().begin(), report_.models().end(), model) !=
         report_.models().end();
}

void Replica::Enter(OpenCall* call) {
  const std::lock_guard lock(mutex_);
  open_.insert(call);
  ++picked_;
}

void Replica::Leave(OpenCall* call) {
  const std::lock_guard lock(mutex_);
  open_.erase(call);
}

}  // namespace qserve::router
