#include "router/proxy/router_service.h"

#include <functional>
#include <utility>

#include "common/rpc/errors.h"
#include "common/rpc/finished_call.h"
#include "router/proxy/stream_proxy.h"
#include "router/proxy/unary_proxy.h"

namespace qserve::router {
grpc::Status RouterService::AdmitGeneration() {
  if (draining_) {
    return rpc::MakeError(
        grpc::StatusCode::UNAVAILABLE, "the router is shutting down",
        {.reason = rpc::kDraining, .retry_delay = std::chrono::milliseconds(1000)});
  }
  const grpc::Status status = Admit();
  if (status.ok()) probe_.requests.Increment();
  return status;
}

grpc::Status RouterService::Admit() {
  if (open_calls_.Reserve()) return grpc::Status::OK;
  probe_.refused.Increment();
  return rpc::MakeError(
      grpc::StatusCode::RESOURCE_EXHAUSTED, "too many open calls",
      {.reason = rpc::kQueueFull, .retry_delay = std::chrono::milliseconds(1000)});
}

grpc::ServerUnaryReactor* RouterService::Generate(grpc::CallbackServerContext* context,
                                                  const v1::GenerateRequest* request,
                                                  v1::GenerateResponse* response) {
  if (const grpc::Status status = AdmitGeneration(); !status.ok())
    return rpc::FinishNow(context, status);
  v1::GenerateRequest completed;
  *completed.mutable_spec() = Completed(request->spec());
  Route route = RouteOf(completed.spec());
  const auto ask = [completed = std::move(completed), response](
                       v1::InferenceService::Stub& stub, grpc::ClientContext* upstream,
                       std::function<void(grpc::Status)> done) {
    response->Clear();
    stub.async()->Generate(upstream, &completed, response, std::move(done));
  };
  return new UnaryProxy(registry_, probe_, open_calls_, *context, std::move(route),
                        ask);  // deletes itself
}

grpc::ServerWriteReactor<v1::StreamGenerateResponse>* RouterService::StreamGenerate(
    grpc::CallbackServerContext* context, const v1::StreamGenerateRequest* request) {
  if (const grpc::Status status = AdmitGeneration(); !status.ok())
    return new rpc::RefusedStream<v1::StreamGenerateResponse>(context, status);  // deletes itself
  return new StreamProxy(registry_, probe_, open_calls_, clock_, *context,
                         *request);  // deletes itself
}

template <class Request, class Response, class Call>
grpc::ServerUnaryReactor* RouterService::Forward(grpc::CallbackServerContext* context,
                                                 const Request& request, Response* response,
                                                 Call call) {
  if (const grpc::Status status = Admit(); !status.ok()) return rpc::FinishNow(context, status);
  const auto ask = [&request, response, call](v1::InferenceService::Stub& stub,
                                              grpc::ClientContext* upstream,
                                              std::function<void(grpc::Status)> done) {
    response->Clear();
    call(*stub.async(), upstream, &request, response, std::move(done));
  };
  return new UnaryProxy(registry_, probe_, open_calls_, *context, {.model = request.model()},
                        ask);  // deletes itself
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
    return rpc::FinishNow(context, grpc::Status::OK);
  }
  return rpc::FinishNow(context, Attempts(registry_, {.model = request->model()}).Refusal());
}

grpc::ServerUnaryReactor* RouterService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest*,
                                                    v1::ListModelsResponse* response) {
  for (v1::Model& model : registry_.Models()) *response->add_models() = std::move(model);
  return rpc::FinishNow(context, grpc::Status::OK);
}

}  // namespace qserve::router
