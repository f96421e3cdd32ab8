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

class Attempts {
 public:
  Attempts(Registry& registry, const v1::GenerationSpec& spec) : registry_(registry), spec_(spec) {}

  // The next replica, none tried before; null: give up with Refusal().
  Replica* Next(const std::string& numerics_id);

  // Worth another replica: it is gone or refuses for itself, and the client's own request is not
  // the cause.
  static bool Retryable(const grpc::Status& status);

  // What to say when Next had nothing to offer: that the replicas' queues are full if the last one
  // tried said so (`cause`), else NO_READY_REPLICA or MODEL_NOT_FOUND.
  grpc::Status Refusal(const grpc::Status& cause = grpc::Status::OK) const;

  size_t count() const { return tried_.size(); }

 private:
  Registry& registry_;
  const v1::GenerationSpec& spec_;
  std::vector<Replica*> tried_;
};

// What a router decides once for a request, so that every replica computes the same: request id and
// seed.
void Complete(v1::GenerationSpec& spec);

}  // namespace qserve::router
