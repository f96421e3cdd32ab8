#include "common/rpc/checked_services.h"

#include <utility>

#include <google/protobuf/stubs/logging.h>

#include "common/rpc/errors.h"
#include "common/rpc/finished_call.h"

namespace qserve::rpc {
namespace {

grpc::Status Malformed() {
  return MakeInvalidArgument(
      {{"request", "is not a valid message: malformed, or text is not UTF-8"}}, "");
}

// Runs `Handler` as it is for requests that parsed, and one that refuses for the others.
template <class Handler>
class CheckedHandler final : public grpc::internal::MethodHandler {
 public:
  template <class Serve, class Refuse>
  CheckedHandler(Serve serve, Refuse refuse)
      : serve_(std::move(serve)), refuse_(std::move(refuse)) {}

  void RunHandler(const HandlerParameter& parameter) override {
    if (parameter.status.ok()) return serve_.RunHandler(parameter);
    refuse_.RunHandler(HandlerParameter(parameter.call, parameter.server_context, parameter.request,
                                        grpc::Status::OK, parameter.internal_data,
                                        parameter.call_requester));
  }
  void* Deserialize(grpc_call* call, grpc_byte_buffer* request, grpc::Status* status,
                    void** handler_data) override {
    return serve_.Deserialize(call, request, status, handler_data);
  }

 private:
  Handler serve_;
  Handler refuse_;
};

template <class Request, class Response, class Serve>
grpc::internal::MethodHandler* Unary(Serve serve) {
  return new CheckedHandler<grpc::internal::CallbackUnaryHandler<Request, Response>>(
      std::move(serve), [](grpc::CallbackServerContext* context, const Request*, Response*) {
        return FinishNow(context, Malformed());
      });
}

template <class Request, class Response, class Serve>
grpc::internal::MethodHandler* Streaming(Serve serve) {
  return new CheckedHandler<grpc::internal::CallbackServerStreamingHandler<Request, Response>>(
      std::move(serve),
      [](grpc::CallbackServerContext* context,
         const Request*) -> grpc::ServerWriteReactor<Response>* {
        return new RefusedStream<Response>(context, Malformed());  // deletes itself in OnDone
      });
}

// Protobuf prints a line for every text that is not UTF-8: clients must not fill our log.
void SilenceProtobuf() { google::protobuf::SetLogHandler(nullptr); }

}  // namespace

// Numbers are the methods' order in the .proto files. The base classes own the handlers.
CheckedInferenceService::CheckedInferenceService() {
  SilenceProtobuf();
  MarkMethodCallback(0, Unary<v1::GenerateRequest, v1::GenerateResponse>(
                            [this](auto... arguments) { return Generate(arguments...); }));
  MarkMethodCallback(1, Streaming<v1::StreamGenerateRequest, v1::StreamGenerateResponse>(
                            [this](auto... arguments) { return StreamGenerate(arguments...); }));
  MarkMethodCallback(2, Unary<v1::CountTokensRequest, v1::CountTokensResponse>(
                            [this](auto... arguments) { return CountTokens(arguments...); }));
  MarkMethodCallback(3, Unary<v1::TokenizeRequest, v1::TokenizeResponse>(
                            [this](auto... arguments) { return Tokenize(arguments...); }));
  MarkMethodCallback(4, Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
                            [this](auto... arguments) { return Detokenize(arguments...); }));
  MarkMethodCallback(5, Unary<v1::GetModelRequest, v1::GetModelResponse>(
                            [this](auto... arguments) { return GetModel(arguments...); }));
  MarkMethodCallback(6, Unary<v1::ListModelsRequest, v1::ListModelsResponse>(
                            [this](auto... arguments) { return ListModels(arguments...); }));
}

CheckedWorkerService::CheckedWorkerService() {
  SilenceProtobuf();
  MarkMethodCallback(0, Streaming<v1::WatchStatusRequest, v1::WatchStatusResponse>(
                            [this](auto... arguments) { return WatchStatus(arguments...); }));
  MarkMethodCallback(1, Unary<v1::DrainRequest, v1::DrainResponse>(
                            [this](auto... arguments) { return Drain(arguments...); }));
  MarkMethodCallback(2, Unary<v1::AbortRequest, v1::AbortResponse>(
                            [this](auto... arguments) { return Abort(arguments...); }));
}

}  // namespace qserve::rpc
