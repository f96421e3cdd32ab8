// InferenceService as the router serves it: generations are proxied, small calls forwarded, models
// answered from the registry.
#pragma once

#include <atomic>

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "common/rpc/checked_services.h"
#include "router/proxy/open_calls.h"
#include "router/proxy/router_probe.h"
#include "router/registry/registry.h"

namespace qserve::router {

class RouterService final : public rpc::CheckedInferenceService {
 public:
  RouterService(Registry& registry, RouterProbe& probe, const Clock& clock)
      : registry_(registry), probe_(probe), clock_(clock), open_calls_(probe.open_calls) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::StreamGenerateResponse>* StreamGenerate(
      grpc::CallbackServerContext* context, const v1::StreamGenerateRequest* request) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const v1::CountTokensRequest* request,
                                        v1::CountTokensResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

  // Refuse new generations from now on.
  void StartDraining() { draining_ = true; }
  // End what is open, with UNAVAILABLE DRAINING.
  void CutCalls() { open_calls_.CutAll(); }
  int64_t open_calls() const { return open_calls_.count(); }

 private:
  // OK and counted, or the reason to refuse: of a generation, and of any call to a replica.
  grpc::Status AdmitGeneration();
  grpc::Status Admit();
  // A small unary call, to one replica after another until one answers.
  template <class Request, class Response, class Call>
  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const Request& request,
                                    Response* response, Call call);

  Registry& registry_;
  RouterProbe& probe_;
  const Clock& clock_;
  OpenCalls open_calls_;
  std::atomic<bool> draining_{false};
};

}  // namespace qserve::router
