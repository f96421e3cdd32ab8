// All replicas, and the choice among them. Thread-safe; replicas are never removed while the router
// runs.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "router/policy/routing_policy.h"
#include "router/registry/replica.h"

namespace qserve::router {

class Registry {
 public:
  // One replica an address; at least one. References must outlive the registry.
  Registry(const std::vector<std::string>& addresses, RoutingPolicy& policy);

  const std::vector<std::unique_ptr<Replica>>& replicas() const { return replicas_; }

  // A ready replica that serves `model`, is none of `excluded` and, if `numerics_id` is not empty,
  // computes the same bits; null if there is none.
  Replica* Pick(const std::string& model, const RoutingRequest& request,
                std::span<Replica* const> excluded, const std::string& numerics_id);

  // Some replica, ready or not, was ever seen to serve it.
  bool Knows(const std::string& model) const;
  // Not every replica has reported yet: an unknown model may still turn up.
  bool Incomplete() const;

  // Models by name, those of equal names merged.
  std::vector<v1::Model> Models() const;

  int64_t ready_count() const;

 private:
  RoutingPolicy& policy_;
  std::vector<std::unique_ptr<Replica>> replicas_;
};

}  // namespace qserve::router
