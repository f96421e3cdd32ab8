#include "router/proxy/unary_proxy.h"

#include <utility>

#include "common/rpc/errors.h"

namespace qserve::router {

UnaryProxy::UnaryProxy(Registry& registry, RouterProbe& probe, grpc::CallbackServerContext& context,
                       const v1::GenerateRequest& request, v1::GenerateResponse& response,
                       std::function<void()> on_over)
    : probe_(probe),
      context_(context),
      request_(request),
      response_(response),
      attempts_(registry, request_.spec()),
      on_over_(std::move(on_over)) {
  Complete(*request_.mutable_spec());
  StartNext(grpc::Status::OK);
}

void UnaryProxy::StartNext(const grpc::Status& cause) {
  Replica* replica = attempts_.Next(request_.spec().resume().numerics_id());
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
    if (client_gone_) begun->TryCancel();
  }
  replica->Enter(this);
  replica->inference().async()->Generate(
      begun, &request_, &response_,
      [this, replica](grpc::Status status) { OnAnswer(*replica, status); });
}

void UnaryProxy::OnAnswer(Replica& replica, const grpc::Status& status) {
  replica.Leave(this);
  bool client_gone = false;
  bool replica_lost = false;
  {
    const std::lock_guard lock(mutex_);
    client_gone = client_gone_;
    replica_lost = replica_lost_;
    upstream_.reset();
  }
  const bool again =
      !status.ok() && !client_gone && (replica_lost || Attempts::Retryable(status));
  if (!again) return End(status);
  response_.Clear();
  StartNext(status);
}

void UnaryProxy::End(const grpc::Status& status) {
  if (const auto delay = rpc::RetryDelayOf(status);
      delay && status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    rpc::AddRetryPushback(context_, *delay);
  }
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

void UnaryProxy::OnDone() {
  const std::function<void()> on_over = std::move(on_over_);
  delete this;
  on_over();
}

}  // namespace qserve::router
