// One unary generation: sent to a replica, and to another one if that is lost. Nothing reaches the
// client before the end, and the seed is decided, so a second try gives the same answer.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include "router/proxy/attempts.h"
#include "router/proxy/router_probe.h"

namespace qserve::router {

class UnaryProxy final : public grpc::ServerUnaryReactor, public OpenCall {
 public:
  // Deletes itself when the call is over; `on_over` runs last.
  UnaryProxy(Registry& registry, RouterProbe& probe, grpc::CallbackServerContext& context,
             const v1::GenerateRequest& request, v1::GenerateResponse& response,
             std::function<void()> on_over);

  void OnCancel() override;
  void OnDone() override;
  void OnReplicaLost() override;

 private:
  // `cause`: why the attempt before this one ended; OK for the first.
  void StartNext(const grpc::Status& cause);
  void End(const grpc::Status& status);
  void OnAnswer(Replica& replica, const grpc::Status& status);

  RouterProbe& probe_;
  grpc::CallbackServerContext& context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse& response_;
  Attempts attempts_;
  std::function<void()> on_over_;
  std::mutex mutex_;
  std::unique_ptr<grpc::ClientContext> upstream_;  // guarded by mutex_
  bool client_gone_ = false;                       // guarded by mutex_
  bool replica_lost_ = false;                      // guarded by mutex_
};

}  // namespace qserve::router
