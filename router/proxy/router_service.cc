#include "router/proxy/router_service.h"

#include <memory>

#include <fmt/format.h>

#include "common/rpc/errors.h"
#include "router/proxy/stream_proxy.h"
#include "router/proxy/unary_proxy.h"

namespace qserve::router {
namespace {

class RefusedStream final : public grpc::ServerWriteReactor<v1::StreamGenerateResponse> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context,
                                    const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace

grpc::Status RouterService::Admit() {
  if (draining_) {
    return rpc::MakeError(
        grpc::StatusCode::UNAVAILABLE, "the router is shutting down",
        {.reason = rpc::kDraining, .retry_delay = std::chrono::milliseconds(1000)});
  }
  if (open_calls_.fetch_add(1) >= kMaxOpenCalls) {
    open_calls_.fetch_sub(1);
    probe_.refused.Increment();
    return rpc::MakeError(
        grpc::StatusCode::RESOURCE_EXHAUSTED, "too many open calls",
        {.reason = rpc::kQueueFull, .retry_delay = std::chrono::milliseconds(1000)});
  }
  probe_.requests.Increment();
  probe_.open_calls.Increment();
  return grpc::Status::OK;
}

void RouterService::OnCallOver() {
  open_calls_.fetch_sub(1);
  probe_.open_calls.Decrement();
}

grpc::ServerUnaryReactor* RouterService::Generate(grpc::CallbackServerContext* context,
                                                  const v1::GenerateRequest* request,
                                                  v1::GenerateResponse* response) {
  if (const grpc::Status status = Admit(); !status.ok()) return FinishNow(context, status);
  return new UnaryProxy(registry_, probe_, *context, *request, *response,
                        [this] { OnCallOver(); });  // deletes itself
}

grpc::ServerWriteReactor<v1::StreamGenerateResponse>* RouterService::StreamGenerate(
    grpc::CallbackServerContext* context, const v1::StreamGenerateRequest* request) {
  if (const grpc::Status status = Admit(); !status.ok())
    return new RefusedStream(status);  // deletes itself
  return new StreamProxy(registry_, probe_, clock_, *context, *request,
                         [this] { OnCallOver(); });  // deletes itself
}

template <class Request, class Response, class Call>
grpc::ServerUnaryReactor* RouterService::Forward(grpc::CallbackServerContext* context,
                                                 const Request& request, Response* response,
                                                 Call call) {
  v1::GenerationSpec spec;
  spec.set_model(request.model());
  Attempts attempts(registry_, spec);
  Replica* replica = attempts.Next("");
  if (replica == nullptr) return FinishNow(context, attempts.Refusal());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // Owned by the callback, which gRPC runs exactly once.
  auto* upstream = grpc::ClientContext::FromCallbackServerContext(*context).release();
  call(*replica->inference().async(), upstream, &request, response,
       [reactor, upstream](grpc::Status status) {
         delete upstream;
         reactor->Finish(status);
       });
  return reactor;
}

grpc::ServerUnaryReactor* RouterService::CountTokens(grpc::CallbackServerContext* context,
                                                     const v1::CountTokensRequest* request,
                                                     v1::CountTokensResponse* response) {
  return Forward(context, *request, response,
                 [](auto& stub, auto... arguments) { stub.CountTokens(arguments...); });
}

grpc::ServerUnaryReactor* RouterService::Tokenize(grpc::CallbackServerContext* context,
                                                  const v1::TokenizeRequest* request,
                                                  v1::TokenizeResponse* response) {
  return Forward(context, *request, response,
                 [](auto& stub, auto... arguments) { stub.Tokenize(arguments...); });
}

grpc::ServerUnaryReactor* RouterService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  return Forward(context, *request, response,
                 [](auto& stub, auto... arguments) { stub.Detokenize(arguments...); });
}

grpc::ServerUnaryReactor* RouterService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest* request,
                                                  v1::GetModelResponse* response) {
  for (v1::Model& model : registry_.Models()) {
    if (model.name() != request->model()) continue;
    *response->mutable_model() = std::move(model);
    return FinishNow(context, grpc::Status::OK);
  }
  v1::GenerationSpec spec;
  spec.set_model(request->model());
  return FinishNow(context, Attempts(registry_, spec).Refusal());
}

grpc::ServerUnaryReactor* RouterService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest*,
                                                    v1::ListModelsResponse* response) {
  for (v1::Model& model : registry_.Models()) *response->add_models() = std::move(model);
  return FinishNow(context, grpc::Status::OK);
}

}  // namespace qserve::router
