#include "worker/serve/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <fmt/format.h>

namespace qserve::worker::serve {
namespace {

// Larger requests are refused by gRPC itself (RESOURCE_EXHAUSTED) before they are parsed.
constexpr int kMaxMessageBytes = 8 << 20;
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kMaxStreamsPerConnection = 4096;

void SetServing(grpc::Server& server, bool alive, bool ready) {
  grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus("", alive);
  health->SetServingStatus(v1::InferenceService::service_full_name(), alive && ready);
}

}  // namespace

Server::Server(const ServedModel& model, engine::Engine& engine, const Clock& clock,
               Metrics& metrics)
    : engine_(engine),
      metrics_(metrics),
      inference_(model, engine, clock, metrics),
      worker_({.status = [this] { return board_->Current(); },
               .drain = [this] { StartDraining(); },
               .abort = [this](const std::string& id) { return inference_.Abort(id); }}) {}

Server::~Server() {
  Shutdown(Duration::zero());
  metrics_.ClearUpdates();  // they read engine and board
  board_.reset();           // samples refer to the server, calls to the board: calls end first
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const std::string& address,
                                                      const ServedModel& model,
                                                      engine::Engine& engine, const Clock& clock,
                                                      Metrics& metrics) {
  auto server = std::unique_ptr<Server>(new Server(model, engine, clock, metrics));
  server->board_ = std::make_unique<StatusBoard>(
      model, engine, clock, metrics,
      [raw = server.get()](const v1::WatchStatusResponse& status) { raw->OnSample(status); });
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &server->port_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.RegisterService(&server->inference_);
  builder.RegisterService(&server->worker_);
  std::unique_ptr<grpc::Server> built = builder.BuildAndStart();
  if (built == nullptr || server->port_ == 0) {
    return absl::UnavailableError(fmt::format("cannot listen on {}", address));
  }
  SetServing(*built, true, true);
  server->server_ = std::move(built);
  server->listening_ = server->server_.get();
  server->board_->Poke();
  return server;
}

void Server::OnSample(const v1::WatchStatusResponse& status) {
  worker_.Publish(status);
  if (grpc::Server* server = listening_)
    SetServing(*server, status.making_progress(), !status.draining());
}

void Server::StartDraining() {
  engine_.StartDraining();
  board_->Poke();
}

bool Server::Idle() const { return inference_.open_calls() == 0 && engine_.Idle(); }

void Server::Shutdown(Duration grace) {
  if (server_ == nullptr) return;
  StartDraining();
  inference_.CutCalls();
  worker_.EndWatches();
  server_->Shutdown(std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::milliseconds>(grace));
}

}  // namespace qserve::worker::serve
