// A connection to a router or a replica, and the small calls that every command makes. Used by the
// commands and by qserve-bench; thread-safe, calls block their thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/interrupt.h"
#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::client {

// What grpc.health.v1 says of qserve.v1.InferenceService.
enum class Health { kServing, kNotServing, kNotOffered };

class Connection {
 public:
  // Connects at the first call. InvalidArgument unless `address` is HOST:PORT.
  static absl::StatusOr<std::unique_ptr<Connection>> Create(const std::string& address,
                                                            Interrupt& interrupt);

  const std::string& address() const { return address_; }
  Interrupt& interrupt() { return interrupt_; }
  v1::InferenceService::Stub& inference() { return *inference_; }

  // Each is bounded by `timeout`. `out` is valid when the status is OK.
  grpc::Status ListModels(std::chrono::milliseconds timeout, v1::ListModelsResponse& out);
  grpc::Status CheckHealth(std::chrono::milliseconds timeout, Health& out);
  // The first message of WatchStatus: UNIMPLEMENTED from anything but a replica.
  grpc::Status WorkerStatus(std::chrono::milliseconds timeout, v1::WatchStatusResponse& out);

  // `name`, or the only model served if that is empty. Errors are ready to be shown.
  absl::StatusOr<v1::Model> FindModel(const std::string& name, std::chrono::milliseconds timeout);

  // One line saying what a call failed of, the address included where the connection did.
  std::string Explain(const grpc::Status& status) const;

 private:
  Connection(std::string address, Interrupt& interrupt);

  const std::string address_;
  Interrupt& interrupt_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::InferenceService::Stub> inference_;
  const std::unique_ptr<v1::WorkerService::Stub> worker_;
};

// "UNAVAILABLE" and so on.
std::string CodeName(grpc::StatusCode code);

}  // namespace qserve::client
