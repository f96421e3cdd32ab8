#include "router/proxy/stream_proxy.h"

#include <utility>

#include <fmt/format.h>

#include "common/log.h"
#include "common/rpc/errors.h"

namespace qserve::router {

// The call to one replica.
class StreamProxy::Upstream final : public grpc::ClientReadReactor<v1::StreamGenerateResponse> {
 public:
  Upstream(StreamProxy& proxy, Replica& replica) : proxy_(proxy), replica_(replica) {}

  void Begin(const v1::GenerationSpec& spec, std::chrono::system_clock::time_point deadline) {
    *request_.mutable_spec() = spec;
    context_.set_deadline(deadline);
    replica_.Enter(&proxy_);
    replica_.inference().async()->StreamGenerate(&context_, &request_, this);
    StartRead(&proxy_.chunk_);
    StartCall();
  }
  // Once the chunk in hand has been written.
  void ReadNext() {
    StartRead(&proxy_.chunk_);
    RemoveHold();
  }
  void Cancel() { context_.TryCancel(); }
  const Replica& replica() const { return replica_; }

  // While a chunk is on its way to the client no read is open, and gRPC would report the call's end
  // beside that write. The hold makes the end wait for its turn.
  void OnReadDone(bool ok) override {
    if (ok) AddHold();
    proxy_.OnChunk(ok);
  }
  void OnDone(const grpc::Status& status) override {
    replica_.Leave(&proxy_);
    proxy_.OnUpstreamDone(status);
  }

 private:
  StreamProxy& proxy_;
  Replica& replica_;
  grpc::ClientContext context_;
  v1::StreamGenerateRequest request_;
};

StreamProxy::StreamProxy(Registry& registry, RouterProbe& probe, OpenCalls& open_calls,
                         const Clock& clock, grpc::CallbackServerContext& context,
                         const v1::StreamGenerateRequest& request)
    : probe_(probe),
      open_calls_(open_calls),
      clock_(clock),
      context_(context),
      spec_(Completed(request.spec())),
      attempts_(registry, RouteOf(spec_)),
      arrival_(clock.Now()) {
  open_calls_.Add(this);
  StartNext(grpc::Status::OK);
}

void StreamProxy::StartNext(const grpc::Status& cause) {
  Replica* replica =
      attempts_.Next(emitted_.any() ? emitted_.numerics_id() : attempts_.route().numerics_id);
  if (replica == nullptr) {
    if (emitted_.any()) {
      Interrupt(grpc::Status(grpc::StatusCode::UNAVAILABLE, "no replica computes the same bits"));
    } else {
      probe_.refused.Increment();
      End(attempts_.Refusal(cause));
    }
    return;
  }
  if (!cause.ok()) (emitted_.any() ? probe_.resumes : probe_.retries).Increment();
  auto upstream = std::make_unique<Upstream>(*this, *replica);
  Upstream* begun = upstream.get();
  {
    const std::lock_guard lock(mutex_);
    replica_lost_ = false;
    upstream_ = std::move(upstream);
    if (client_gone_ || cut_short_) begun->Cancel();
  }
  begun->Begin(emitted_.any() ? emitted_.Resume(spec_) : spec_, context_.deadline());
}

void StreamProxy::OnChunk(bool ok) {
  if (!ok) return;  // OnUpstreamDone follows
  if (!emitted_.any()) probe_.first_chunk_seconds.Observe(ToSeconds(clock_.Now() - arrival_));
  emitted_.Note(chunk_);
  StartWrite(&chunk_);
}

void StreamProxy::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  if (!ok) {
    client_gone_ = true;
    upstream_->Cancel();
  }
  // Also when the client is gone: reading to the end is how the call learns of its own end.
  upstream_->ReadNext();
}

void StreamProxy::OnUpstreamDone(const grpc::Status& status) {
  bool client_gone = false;
  bool replica_lost = false;
  bool cut_short = false;
  std::unique_ptr<Upstream> over;  // freed when this function ends: gRPC is done with it
  {
    const std::lock_guard lock(mutex_);
    client_gone = client_gone_;
    replica_lost = replica_lost_;
    cut_short = cut_short_;
    over = std::move(upstream_);
  }
  if (client_gone) return End(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the client"));
  if (status.ok()) return End(status);
  if (cut_short) return End(attempts_.ShuttingDown(emitted_.tokens()));
  if (!replica_lost && !Attempts::Retryable(status)) return End(status);
  if (replica_lost)
    LOG_WARN("request {}: replica {} was lost", spec_.request_id(), over->replica().address());
  const int candidates = spec_.output().has_n() ? spec_.output().n() : 1;
  if (emitted_.finished(candidates)) return End(grpc::Status::OK);  // only the status was missing
  if (attempts_.count() >= kMaxAttempts && emitted_.any()) return Interrupt(status);
  StartNext(status);
}

void StreamProxy::Interrupt(const grpc::Status& cause) {
  probe_.interrupted.Increment();
  End(rpc::MakeError(grpc::StatusCode::UNAVAILABLE,
                     fmt::format("the stream broke: {}", cause.error_message()),
                     {.reason = rpc::kStreamInterrupted,
                      .metadata = {{"tokens_emitted", std::to_string(emitted_.tokens())}},
                      .request_id = spec_.request_id()}));
}

void StreamProxy::End(const grpc::Status& status) {
  rpc::AddRetryPushback(context_, status);
  Finish(status);
}

void StreamProxy::OnCancel() {
  const std::lock_guard lock(mutex_);
  client_gone_ = true;
  if (upstream_ != nullptr) upstream_->Cancel();
}

void StreamProxy::OnReplicaLost() {
  const std::lock_guard lock(mutex_);
  replica_lost_ = true;
  if (upstream_ != nullptr) upstream_->Cancel();
}

void StreamProxy::CutShort() {
  const std::lock_guard lock(mutex_);
  cut_short_ = true;
  if (upstream_ != nullptr) upstream_->Cancel();
}

void StreamProxy::OnDone() {
  OpenCalls& open_calls = open_calls_;
  open_calls.Remove(this);
  delete this;
  open_calls.Release();
}

}  // namespace qserve::router
