// WorkerService: status streams for routers, drain and abort for operators. Served beside
// InferenceService by a replica leader.
#pragma once

#include <functional>
#include <mutex>
#include <set>
#include <string>

#include <grpcpp/grpcpp.h>

#include "common/rpc/checked_services.h"

namespace qserve::worker::serve {

class WorkerService final : public rpc::CheckedWorkerService {
 public:
  struct Control {
    std::function<v1::WatchStatusResponse()> status;
    std::function<void()> drain;
    std::function<bool(const std::string& request_id)> abort;
  };
  explicit WorkerService(Control control) : control_(std::move(control)) {}

  grpc::ServerWriteReactor<v1::WatchStatusResponse>* WatchStatus(
      grpc::CallbackServerContext* context, const v1::WatchStatusRequest* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;

  // A new sample: watchers get it when it says something new, and once a second anyway.
  void Publish(const v1::WatchStatusResponse& status);
  // Ends every watch, so that the server can shut down.
  void EndWatches();

 private:
  class Watch;

  Control control_;
  std::mutex mutex_;
  std::set<Watch*> watches_;  // guarded by mutex_
  bool ended_ = false;        // guarded by mutex_
};

}  // namespace qserve::worker::serve
