// A replica leader's gRPC server: InferenceService, WorkerService, grpc.health.v1 and reflection on
// one port.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "worker/engine/engine.h"
#include "worker/serve/inference_service.h"
#include "worker/serve/served_model.h"
#include "worker/serve/status_board.h"
#include "worker/serve/worker_service.h"

namespace qserve::worker::serve {

class Server {
 public:
  // Listens on `address` ("127.0.0.1:50051"; port 0 picks one) and serves at once. The engine must
  // be running or about to. References must outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const std::string& address,
                                                       const ServedModel& model,
                                                       engine::Engine& engine, const Clock& clock,
                                                       Metrics& metrics);
  ~Server();

  int port() const { return port_; }
  // Refuses new generations; those running go on. Health turns to NOT_SERVING.
  void StartDraining();
  // True when no call is open and the engine has nothing to do.
  bool Idle() const;
  // Tells every generation that is not finished that it must go on elsewhere (UNAVAILABLE
  // DRAINING), and breaks what is left after `grace`. The engine should still run: what it ends by
  // itself is reported as cancelled.
  void Shutdown(Duration grace);

 private:
  Server(const ServedModel& model, engine::Engine& engine, const Clock& clock, Metrics& metrics);
  void OnSample(const v1::WatchStatusResponse& status);

  engine::Engine& engine_;
  Metrics& metrics_;
  InferenceService inference_;
  WorkerService worker_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<grpc::Server*> listening_{nullptr};  // server_ once it is up: samples begin before
  std::unique_ptr<StatusBoard> board_;
  int port_ = 0;
};

}  // namespace qserve::worker::serve
