// InferenceService and WorkerService for servers that answer a malformed request as the client's
// mistake. gRPC's callback API gives a message that does not parse, text that is not UTF-8
// included, the status UNIMPLEMENTED without a word. Bases of the services of worker/serve and
// router; thread-safe.
#pragma once

#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::rpc {

class CheckedInferenceService : public v1::InferenceService::CallbackService {
 public:
  CheckedInferenceService();
};

class CheckedWorkerService : public v1::WorkerService::CallbackService {
 public:
  CheckedWorkerService();
};

}  // namespace qserve::rpc
