#include "worker/serve/inference_service.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/log.h"
#include "common/rpc/errors.h"
#include "common/rpc/finished_call.h"
#include "worker/serve/generation.h"
#include "worker/serve/request_reader.h"

namespace qserve::worker::serve {
namespace {

constexpr int kPumpThreads = 2;

// The client's deadline on our own clock, a little early, so that what there is by then still
// reaches it.
TimePoint EngineDeadline(const grpc::CallbackServerContext& context, TimePoint now) {
  const auto remaining = context.deadline() - std::chrono::system_clock::now();
  if (remaining > std::chrono::hours(24 * 365)) return kNever;
  const auto margin = std::min<Duration>(std::chrono::milliseconds(100), remaining / 10);
  return now + remaining - margin;
}

// What Submit refuses, in the words of the API.
grpc::Status SubmitError(const absl::Status& status, bool draining, const std::string& request_id) {
  const std::string message(status.message());
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    return rpc::MakeError(grpc::StatusCode::RESOURCE_EXHAUSTED, message,
                          {.reason = rpc::kQueueFull,
                           .retry_delay = std::chrono::milliseconds(1000),
                           .request_id = request_id});
  }
  if (status.code() == absl::StatusCode::kInvalidArgument) {
    return rpc::MakeError(grpc::StatusCode::INVALID_ARGUMENT, message,
                          {.reason = rpc::kContextLengthExceeded, .request_id = request_id});
  }
  if (status.code() == absl::StatusCode::kUnavailable) {
    return rpc::MakeError(grpc::StatusCode::UNAVAILABLE, message,
                          {.reason = draining ? rpc::kDraining : rpc::kReplicaFailed,
                           .retry_delay = std::chrono::milliseconds(1000),
                           .request_id = request_id});
  }
  return rpc::MakeError(rpc::ToGrpcCode(status.code()), message,
                        {.reason = rpc::kInternal, .request_id = request_id});
}

}  // namespace

ServeProbe::ServeProbe(Metrics& metrics)
    : requests(metrics.AddCounter("qserve_requests_total", "Generation calls accepted")),
      rejected(metrics.AddCounter("qserve_requests_rejected_total",
                                  "Generation calls refused before the engine")),
      first_token_seconds(metrics.AddHistogram("qserve_time_to_first_token_seconds",
                                               "From arrival to the first chunk",
                                               LatencyBuckets())),
      request_seconds(metrics.AddHistogram(
          "qserve_request_seconds", "From arrival to the end of a call", LatencyBuckets())) {}

// What unary and streaming calls share: a generation, its channel and its place in the pump.
class InferenceService::Call : public PumpedCall {
 public:
  Call(InferenceService& service, grpc::CallbackServerContext& context, ParsedRequest request)
      : service_(service),
        context_(context),
        arrival_(request.engine.arrival),
        generation_(service.model_, service.engine_, std::move(request)) {
    const engine::RequestId id = generation_.id();
    CallPump& pump = service_.pump_;
    channel_ = std::make_shared<engine::TokenChannel>([&pump, id] { pump.Notify(id); });
    const std::lock_guard lock(service_.open_mutex_);
    open_ = service_.open_by_request_id_.emplace(generation_.request_id(), id);
  }
  ~Call() override = default;

  // After construction; the reactor may be used by other threads from here on.
  void Start() {
    service_.probe_.requests.Increment();
    service_.pump_.Add(generation_.id(), this);
    engine::EngineRequest request = generation_.TakeEngineRequest();
    request.channel = channel_;
    const bool nothing_to_do = generation_.complete();
    const absl::Status submitted =
        nothing_to_do ? absl::OkStatus() : service_.engine_.Submit(std::move(request));
    if (submitted.ok()) {
      if (nothing_to_do) service_.pump_.Notify(generation_.id());
      return;
    }
    service_.probe_.rejected.Increment();
    const bool draining = service_.engine_.Stats().draining;
    const grpc::Status status = SubmitError(submitted, draining, generation_.request_id());
    service_.pump_.Locked(generation_.id(), [this, &status] { return FinishAction(status); });
  }

  std::function<void()> CutShort() override {
    ConsumeEvents();
    generation_.CutShort();
    return Advance();
  }

 protected:
  // Returns the finishing action, at most once in a call's life.
  std::function<void()> FinishAction(const grpc::Status& status) {
    if (finishing_) return nullptr;
    finishing_ = true;
    service_.probe_.request_seconds.Observe(ToSeconds(service_.clock_.Now() - arrival_));
    return [this, status] {
      rpc::AddRetryPushback(context_, status);
      FinishCall(status);
    };
  }
  virtual void FinishCall(const grpc::Status& status) = 0;

  void ConsumeEvents() {
    channel_->TakeAll(events_);
    generation_.Consume(events_);
  }

  // The client is gone, or the call was cancelled.
  void CancelInEngine() { service_.engine_.Cancel(generation_.id()); }

  // In OnDone, last.
  void Leave() {
    {
      const std::lock_guard lock(service_.open_mutex_);
      service_.open_by_request_id_.erase(open_);
    }
    service_.pump_.Remove(generation_.id());
  }

  InferenceService& service_;
  grpc::CallbackServerContext& context_;
  const TimePoint arrival_;
  Generation generation_;
  bool finishing_ = false;

 private:
  std::shared_ptr<engine::TokenChannel> channel_;
  std::vector<engine::TokenEvent> events_;
  std::unordered_multimap<std::string, engine::RequestId>::iterator open_;
};

class InferenceService::UnaryCall final : public Call, public grpc::ServerUnaryReactor {
 public:
  UnaryCall(InferenceService& service, grpc::CallbackServerContext& context, ParsedRequest request,
            v1::GenerateResponse& response)
      : Call(service, context, std::move(request)), response_(response) {}

  std::function<void()> Advance() override {
    ConsumeEvents();
    if (generation_.failed()) return FinishAction(generation_.status());
    if (!generation_.complete() || finishing_) return nullptr;
    generation_.FillResponse(response_);
    return FinishAction(grpc::Status::OK);
  }
  void FinishCall(const grpc::Status& status) override { Finish(status); }

  void OnCancel() override {
    CancelInEngine();
    service_.pump_.Locked(generation_.id(), [this] {
      return FinishAction(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the client"));
    });
  }
  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  v1::GenerateResponse& response_;
};

class InferenceService::StreamCall final
    : public Call,
      public grpc::ServerWriteReactor<v1::StreamGenerateResponse> {
 public:
  using Call::Call;

  // One write at a time: while the client does not read, tokens gather in the channel and come as
  // one chunk.
  std::function<void()> Advance() override {
    if (writing_ || finishing_) return nullptr;
    ConsumeEvents();
    if (!generation_.first_chunk_sent() && generation_.Next(chunk_)) {
      service_.probe_.first_token_seconds.Observe(ToSeconds(service_.clock_.Now() - arrival_));
      return WriteAction();
    }
    if (generation_.Next(chunk_)) return WriteAction();
    if (generation_.failed()) return FinishAction(generation_.status());
    if (generation_.done()) return FinishAction(grpc::Status::OK);
    return nullptr;
  }
  void FinishCall(const grpc::Status& status) override { Finish(status); }

  void OnWriteDone(bool ok) override {
    if (!ok) CancelInEngine();
    service_.pump_.Locked(generation_.id(), [this, ok] {
      writing_ = false;
      if (!ok || cancelled_) return FinishAction(ClientGone());
      return Advance();
    });
  }
  void OnCancel() override {
    CancelInEngine();
    service_.pump_.Locked(generation_.id(), [this]() -> std::function<void()> {
      cancelled_ = true;
      if (writing_) return nullptr;  // OnWriteDone ends it
      return FinishAction(ClientGone());
    });
  }
  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  static grpc::Status ClientGone() {
    return {grpc::StatusCode::CANCELLED, "cancelled by the client"};
  }
  std::function<void()> WriteAction() {
    writing_ = true;
    return [this] { StartWrite(&chunk_); };
  }

  v1::StreamGenerateResponse chunk_;
  bool writing_ = false;
  bool cancelled_ = false;
};

InferenceService::InferenceService(const ServedModel& model, engine::Engine& engine,
                                   const Clock& clock, Metrics& metrics)
    : model_(model), engine_(engine), clock_(clock), probe_(metrics), pump_(kPumpThreads) {}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const v1::GenerateRequest* request,
                                                     v1::GenerateResponse* response) {
  const TimePoint now = clock_.Now();
  ReadResult read = ReadGeneration(request->spec(), model_, now, EngineDeadline(*context, now));
  if (!read.status.ok()) {
    probe_.rejected.Increment();
    return rpc::FinishNow(context, read.status);
  }
  auto* call = new UnaryCall(*this, *context, std::move(read.request),
                             *response);  // deletes itself in OnDone
  call->Start();
  return call;
}

grpc::ServerWriteReactor<v1::StreamGenerateResponse>* InferenceService::StreamGenerate(
    grpc::CallbackServerContext* context, const v1::StreamGenerateRequest* request) {
  const TimePoint now = clock_.Now();
  ReadResult read = ReadGeneration(request->spec(), model_, now, EngineDeadline(*context, now));
  if (!read.status.ok()) {
    probe_.rejected.Increment();
    return new rpc::RefusedStream<v1::StreamGenerateResponse>(
        context, read.status);  // deletes itself in OnDone
  }
  auto* call =
      new StreamCall(*this, *context, std::move(read.request));  // deletes itself in OnDone
  call->Start();
  return call;
}

grpc::ServerUnaryReactor* InferenceService::CountTokens(grpc::CallbackServerContext* context,
                                                        const v1::CountTokensRequest* request,
                                                        v1::CountTokensResponse* response) {
  grpc::Status status = CheckModelName(request->model(), "model", model_);
  std::vector<int32_t> ids;
  if (status.ok()) status = ReadPrompt(request->prompt(), "prompt", model_, ids);
  response->set_token_count(static_cast<int32_t>(ids.size()));
  return rpc::FinishNow(context, status);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  grpc::Status status = CheckModelName(request->model(), "model", model_);
  if (status.ok() && model_.tokenizer == nullptr) {
    status = rpc::MakeError(grpc::StatusCode::UNIMPLEMENTED, "this model has no tokenizer",
                            {.reason = rpc::kUnsupported});
  }
  if (!status.ok()) return rpc::FinishNow(context, status);
  const bool add = request->has_add_special_tokens() ? request->add_special_tokens() : true;
  const auto ids = model_.tokenizer->Encode(request->text(), {.add_special_tokens = add});
  if (!ids.ok())
    return rpc::FinishNow(
        context, rpc::MakeInvalidArgument({{"text", std::string(ids.status().message())}}, ""));
  response->mutable_token_ids()->Assign(ids->begin(), ids->end());
  return rpc::FinishNow(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  grpc::Status status = CheckModelName(request->model(), "model", model_);
  if (status.ok() && model_.tokenizer == nullptr) {
    status = rpc::MakeError(grpc::StatusCode::UNIMPLEMENTED, "this model has no tokenizer",
                            {.reason = rpc::kUnsupported});
  }
  if (!status.ok()) return rpc::FinishNow(context, status);
  const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
  auto text = model_.tokenizer->Decode(ids, request->skip_special_tokens());
  if (!text.ok())
    return rpc::FinishNow(context, rpc::MakeInvalidArgument(
                                       {{"token_ids", std::string(text.status().message())}}, ""));
  response->set_text(*std::move(text));
  return rpc::FinishNow(context, grpc::Status::OK);
}

void InferenceService::FillModel(v1::Model& out) const {
  out.set_name(model_.name);
  out.set_max_model_len(model_.max_model_len);
  out.set_vocab_size(model_.vocab_size);
  out.set_architecture(model_.architecture);
  out.set_quantization(model_.quantization);
  out.add_numerics_ids(model_.numerics_id);
  v1::SamplingParams& sampling = *out.mutable_default_sampling();
  if (model_.defaults.temperature) sampling.set_temperature(*model_.defaults.temperature);
  if (model_.defaults.top_p) sampling.set_top_p(*model_.defaults.top_p);
  if (model_.defaults.top_k) sampling.set_top_k(*model_.defaults.top_k);
  if (model_.defaults.min_p) sampling.set_min_p(*model_.defaults.min_p);
  if (model_.defaults.repetition_penalty)
    sampling.set_repetition_penalty(*model_.defaults.repetition_penalty);
  out.mutable_eos_token_ids()->Assign(model_.eos_token_ids.begin(), model_.eos_token_ids.end());
  out.set_supports_chat(model_.chat_template != nullptr);
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* request,
                                                     v1::GetModelResponse* response) {
  const grpc::Status status = CheckModelName(request->model(), "model", model_);
  if (status.ok()) FillModel(*response->mutable_model());
  return rpc::FinishNow(context, status);
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  FillModel(*response->add_models());
  return rpc::FinishNow(context, grpc::Status::OK);
}

bool InferenceService::Abort(const std::string& request_id) {
  const std::lock_guard lock(open_mutex_);
  const auto [begin, end] = open_by_request_id_.equal_range(request_id);
  for (auto call = begin; call != end; ++call) engine_.Cancel(call->second);
  return begin != end;
}

}  // namespace qserve::worker::serve
