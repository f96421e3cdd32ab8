// Calls that are over at once: refused, or answered without waiting. Used by the services of
// worker/serve and router, on gRPC's threads.
#pragma once

#include <grpcpp/grpcpp.h>

#include "common/rpc/errors.h"

namespace qserve::rpc {

// A unary call that ends with `status`.
inline grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context,
                                           const grpc::Status& status) {
  AddRetryPushback(*context, status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// A stream that is over before it began. Deletes itself.
template <class Response>
class RefusedStream final : public grpc::ServerWriteReactor<Response> {
 public:
  RefusedStream(grpc::CallbackServerContext* context, const grpc::Status& status) {
    AddRetryPushback(*context, status);
    this->Finish(status);
  }
  void OnDone() override { delete this; }
};

}  // namespace qserve::rpc
