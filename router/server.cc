#include "router/server.h"

#include <algorithm>
#include <thread>

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include "common/cli/options.h"
#include "common/status_macros.h"

namespace qserve::router {
namespace {

constexpr int kMaxMessageBytes = 8 << 20;
constexpr int kMaxMetadataBytes = 16 << 10;
// For calls that were cut short to be told so.
constexpr auto kCutGrace = std::chrono::seconds(1);

absl::Status CheckAddresses(const RouterOptions& options) {
  if (options.workers.empty()) return absl::InvalidArgumentError("--workers names no replica");
  for (const std::string& address : options.workers) {
    if (!cli::ParseHostPort(address, nullptr)) {
      return absl::InvalidArgumentError(fmt::format("--workers: '{}' is not HOST:PORT", address));
    }
    if (std::count(options.workers.begin(), options.workers.end(), address) > 1) {
      return absl::InvalidArgumentError(fmt::format("--workers names {} twice", address));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Router::Router(const RouterOptions& options, std::unique_ptr<RoutingPolicy> policy,
               const Clock& clock, Metrics& metrics)
    : clock_(clock),
      metrics_(metrics),
      policy_(std::move(policy)),
      registry_(options.workers, *policy_),
      probe_(metrics, registry_),
      service_(registry_, probe_, clock) {}

absl::StatusOr<std::unique_ptr<Router>> Router::Start(const RouterOptions& options,
                                                      const Clock& clock, Metrics& metrics) {
  RETURN_IF_ERROR(CheckAddresses(options));
  ASSIGN_OR_RETURN(auto policy, MakeRoutingPolicy(options.policy));
  auto router = std::unique_ptr<Router>(new Router(options, std::move(policy), clock, metrics));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &router->port_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.RegisterService(&router->service_);
  router->server_ = builder.BuildAndStart();
  if (router->server_ == nullptr || router->port_ == 0) {
    return absl::UnavailableError(fmt::format("cannot listen on {}", options.listen));
  }
  for (const auto& replica : router->registry_.replicas()) {
    router->watchers_.push_back(std::make_unique<Watcher>(*replica, clock));
  }
  router->health_ =
      std::jthread([raw = router.get()](std::stop_token stop) { raw->UpdateHealth(stop); });
  return router;
}

Router::~Router() {
  metrics_.ClearUpdates();  // they read the registry
  DrainAndStop(Duration::zero());
  health_ = {};
  watchers_.clear();
}

void Router::UpdateHealth(std::stop_token stop) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("", true);
  while (!stop.stop_requested()) {
    health->SetServingStatus(v1::InferenceService::service_full_name(),
                             !draining_ && registry_.ready_count() > 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void Router::DrainAndStop(Duration timeout) {
  if (server_ == nullptr) return;  // it could not listen
  draining_ = true;
  service_.StartDraining();
  const TimePoint deadline = clock_.Now() + timeout;
  while (service_.open_calls() > 0 && clock_.Now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  service_.CutCalls();
  server_->Shutdown(std::chrono::system_clock::now() + kCutGrace);
  // Proxies end when their replica's call does; both sides have been cancelled.
  while (service_.open_calls() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace qserve::router
