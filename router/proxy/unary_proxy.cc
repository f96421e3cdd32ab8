#include "router/proxy/unary_proxy.h"

#include <utility>

#include "common/rpc/errors.h"

namespace qserve::router {

UnaryProxy::UnaryProxy(Registry& registry, RouterProbe& probe, OpenCalls& open_calls,
                       grpc::CallbackServerContext& context, Route route, Ask ask)
    : probe_(probe),
      open_calls_(open_calls),
      context_(context),
      ask_(std::move(ask)),
      attempts_(registry, std::move(route)) {
  open_calls_.Add(this);
  StartNext(grpc::Status::OK);
}

void UnaryProxy::StartNext(const grpc::Status& cause) {
  Replica* replica = attempts_.Next(attempts_.route().numerics_id);
  if (replica == nullptr) {
    probe_.refused.Increment();
    End(attempts_.Refusal(cause));
    return;
  }
  if (!cause.ok()) probe_.retries.Increment();
  auto upstream = std::make_unique<grpc::ClientContext>();
  grpc::ClientContext* begun = upstream.get();
  begun->set_deadline(context_.deadline());
  {
    const std::lock_guard lock(mutex_);
    replica_lost_ = false;
    upstream_ = std::move(upstream);
    if (client_gone_ || cut_short_) begun->TryCancel();
  }
  replica->Enter(this);
  ask_(replica->inference(), begun,
       [this, replica](grpc::Status status) { OnAnswer(*replica, status); });
}

void UnaryProxy::OnAnswer(Replica& replica, const grpc::Status& status) {
  replica.Leave(this);
  bool client_gone = false;
  bool replica_lost = false;
  bool cut_short = false;
  {
    const std::lock_guard lock(mutex_);
    client_gone = client_gone_;
    replica_lost = replica_lost_;
    cut_short = cut_short_;
    upstream_.reset();
  }
  if (status.ok() || client_gone) return End(status);
  if (cut_short) return End(attempts_.ShuttingDown(0));
  if (!replica_lost && !Attempts::Retryable(status)) return End(status);
  StartNext(status);
}

void UnaryProxy::End(const grpc::Status& status) {
  rpc::AddRetryPushback(context_, status);
  Finish(status);
}

void UnaryProxy::OnCancel() {
  const std::lock_guard lock(mutex_);
  client_gone_ = true;
  if (upstream_ != nullptr) upstream_->TryCancel();
}

void UnaryProxy::OnReplicaLost() {
  const std::lock_guard lock(mutex_);
  replica_lost_ = true;
  if (upstream_ != nullptr) upstream_->TryCancel();
}

void UnaryProxy::CutShort() {
  const std::lock_guard lock(mutex_);
  cut_short_ = true;
  if (upstream_ != nullptr) upstream_->TryCancel();
}

void UnaryProxy::OnDone() {
  OpenCalls& open_calls = open_calls_;
  open_calls.Remove(this);
  delete this;
  open_calls.Release();
}

}  // namespace qserve::router
