// One unary call: sent to a replica, and to another one if that is lost or refuses for itself.
// Nothing reaches the client before the end, and the seed is decided, so a second try gives the
// same answer.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include "router/proxy/attempts.h"
#include "router/proxy/open_calls.h"
#include "router/proxy/router_probe.h"

namespace qserve::router {

class UnaryProxy final : public grpc::ServerUnaryReactor, public OpenCall, public ClientCall {
 public:
  // Puts the client's request to a replica and has the client's response filled; `done` is called
  // once, later. What it refers to must live as long as the client's call.
  using Ask = std::function<void(v1::InferenceService::Stub&, grpc::ClientContext*,
                                 std::function<void(grpc::Status)> done)>;

  // For a call with room in `open_calls`. Deletes itself when it is over. References must outlive
  // it.
  UnaryProxy(Registry& registry, RouterProbe& probe, OpenCalls& open_calls,
             grpc::CallbackServerContext& context, Route route, Ask ask);

  void OnCancel() override;
  void OnDone() override;
  void OnReplicaLost() override;
  void CutShort() override;

 private:
  // `cause`: why the attempt before this one ended; OK for the first.
  void StartNext(const grpc::Status& cause);
  void End(const grpc::Status& status);
  void OnAnswer(Replica& replica, const grpc::Status& status);

  RouterProbe& probe_;
  OpenCalls& open_calls_;
  grpc::CallbackServerContext& context_;
  const Ask ask_;
  Attempts attempts_;
  std::mutex mutex_;
  std::unique_ptr<grpc::ClientContext> upstream_;  // guarded by mutex_
  bool client_gone_ = false;                       // guarded by mutex_
  bool replica_lost_ = false;                      // guarded by mutex_
  bool cut_short_ = false;                         // guarded by mutex_
};

}  // namespace qserve::router
