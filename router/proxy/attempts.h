// Which replica next, and what to say when there is none: shared by the unary and the streaming
// proxy. One object a call, guarded by its owner.
#pragma once

#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "qserve/v1/inference.pb.h"
#include "router/registry/registry.h"

namespace qserve::router {

inline constexpr size_t kMaxAttempts = 3;

// What the choice of a replica depends on, and the words of a refusal.
struct Route {
  std::string model;
  std::string model_field = "model";  // where the request has it
  std::string session_id;
  std::string request_id;
  std::string numerics_id;  // not empty: of a stream that the client itself resumes
};
Route RouteOf(const v1::GenerationSpec& spec);

class Attempts {
 public:
  Attempts(Registry& registry, Route route) : registry_(registry), route_(std::move(route)) {}

  const Route& route() const { return route_; }

  // The next replica, none tried before; null: give up with Refusal().
  Replica* Next(const std::string& numerics_id);

  // Worth another replica: it is gone or refuses for itself, and the client's own request is not
  // the cause. To be asked only if nobody at this side has cancelled the call: then CANCELLED is
  // what gRPC says of a call that reached a server while it shut down.
  static bool Retryable(const grpc::Status& status);

  // What to say when Next had nothing to offer: that the replicas' queues are full if the last one
  // tried said so (`cause`), else NO_READY_REPLICA or MODEL_NOT_FOUND.
  grpc::Status Refusal(const grpc::Status& cause = grpc::Status::OK) const;

  // What to say when the router itself must go and the call with it.
  grpc::Status ShuttingDown(int64_t tokens_emitted) const;

  size_t count() const { return tried_.size(); }

 private:
  Registry& registry_;
  const Route route_;
  std::vector<Replica*> tried_;
};

// `spec` with what a router decides once for a request, so that every replica computes the same:
// request id and seed.
v1::GenerationSpec Completed(v1::GenerationSpec spec);

}  // namespace qserve::router
