// The router as one object: registry, watchers, service, health and reflection on one port. Used by
// main and by tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "router/discovery/watcher.h"
#include "router/policy/routing_policy.h"
#include "router/proxy/router_service.h"
#include "router/registry/registry.h"

namespace qserve::router {

struct RouterOptions {
  std::string listen = "127.0.0.1:50050";
  std::vector<std::string> workers;  // addresses of replica leaders
  std::string policy = "least-loaded";
};

class Router {
 public:
  // Listens and serves at once; replicas join as they answer. References must outlive the router.
  static absl::StatusOr<std::unique_ptr<Router>> Start(const RouterOptions& options,
                                                       const Clock& clock, Metrics& metrics);
  ~Router();

  int port() const { return port_; }
  int64_t ready_replicas() const { return registry_.ready_count(); }
  // Refuses new generations, waits until the open ones are over or `timeout` has passed, then ends
  // what is left.
  void DrainAndStop(Duration timeout);

 private:
  Router(const RouterOptions& options, std::unique_ptr<RoutingPolicy> policy, const Clock& clock,
         Metrics& metrics);
  void UpdateHealth(std::stop_token stop);

  const Clock& clock_;
  Metrics& metrics_;
  std::unique_ptr<RoutingPolicy> policy_;
  Registry registry_;
  RouterProbe probe_;
  RouterService service_;
  std::vector<std::unique_ptr<Watcher>> watchers_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> draining_{false};
  int port_ = 0;
  std::jthread health_;
};

}  // namespace qserve::router
