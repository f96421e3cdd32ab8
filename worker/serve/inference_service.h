// InferenceService on a replica leader: callback API, one reactor a call. Reading, tokenizing and
// writing happen on gRPC's and the pump's threads; the engine thread only ever pushes into a
// channel.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>

#include <grpcpp/grpcpp.h>
#include <prometheus/histogram.h>

#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "common/rpc/checked_services.h"
#include "worker/engine/engine.h"
#include "worker/serve/call_pump.h"
#include "worker/serve/served_model.h"

namespace qserve::worker::serve {

// Latencies of finished calls, registered once.
struct ServeProbe {
  explicit ServeProbe(Metrics& metrics);
  prometheus::Counter& requests;
  prometheus::Counter& rejected;
  prometheus::Histogram& first_token_seconds;
  prometheus::Histogram& request_seconds;
};

class InferenceService final : public rpc::CheckedInferenceService {
 public:
  // All references must outlive the service and every call.
  InferenceService(const ServedModel& model, engine::Engine& engine, const Clock& clock,
                   Metrics& metrics);

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

  // Cancels an open call by the client's request id; false if there is none. Any thread.
  bool Abort(const std::string& request_id);

  // Ends the generations that are not finished with UNAVAILABLE DRAINING; new ones must be refused
  // already. Any thread.
  void CutCalls() { pump_.CutAll(); }

  // Calls that have not ended. Any thread.
  int64_t open_calls() const { return pump_.open_calls(); }

 private:
  class Call;
  class UnaryCall;
  class StreamCall;
  friend class Call;

  void FillModel(v1::Model& out) const;

  const ServedModel& model_;
  engine::Engine& engine_;
  const Clock& clock_;
  ServeProbe probe_;
  CallPump pump_;
  std::mutex open_mutex_;
  std::unordered_multimap<std::string, engine::RequestId>
      open_by_request_id_;  // guarded by open_mutex_
};

}  // namespace qserve::worker::serve
