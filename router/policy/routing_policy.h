// Which replica gets a request. Policies are pure but for small counters of their own; one object
// per router, any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace qserve::router {

// What a policy knows of a replica that is ready for the request.
struct ReplicaLoad {
  int64_t index = 0;  // in the registry
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t queued_tokens = 0;
  int64_t in_flight = 0;  // calls that this router has open there
  int64_t picked = 0;     // how often it was picked, ever
};

// What a policy knows of the request.
struct RoutingRequest {
  std::string_view session_id;
};

class RoutingPolicy {
 public:
  virtual ~RoutingPolicy() = default;
  // Position in `replicas`, which is not empty.
  virtual size_t Pick(const RoutingRequest& request, std::span<const ReplicaLoad> replicas) = 0;
};

// "least-loaded": fewest sequences, running and waiting, as far as reports and this router's own
// calls tell; ties go to the one picked least. "round-robin": in turn. "random": uniformly.
// Otherwise InvalidArgument naming these.
absl::StatusOr<std::unique_ptr<RoutingPolicy>> MakeRoutingPolicy(const std::string& name);

}  // namespace qserve::router
