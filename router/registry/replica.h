// One replica as the router sees it: its channel, its last report, the calls open there.
// Thread-safe. Lives as long as the registry.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::router {

// A replica that says nothing for this long, though it reports once a second, is gone or stopped.
inline constexpr Duration kReportTimeout = std::chrono::seconds(4);

// A call that can be ended when its replica is lost. Implemented by the proxies.
class OpenCall {
 public:
  virtual ~OpenCall() = default;
  virtual void OnReplicaLost() = 0;  // any thread; must not call back into the replica
};

class Replica {
 public:
  Replica(int64_t index, std::string address);

  int64_t index() const { return index_; }
  const std::string& address() const { return address_; }
  v1::InferenceService::Stub& inference() { return *inference_; }
  v1::WorkerService::Stub& worker() { return *worker_; }

  // Discovery's side.
  void OnReport(const v1::WatchStatusResponse& report);
  void OnModels(std::vector<v1::Model> models);
  void OnLost();  // ends the open calls; not ready until the next report

  // A consistent copy of what is known.
  struct View {
    bool ready = false;  // is there, makes progress, does not drain
    bool known = false;  // has ever reported
    v1::WatchStatusResponse report;
    int64_t in_flight = 0;
    int64_t picked = 0;
  };
  View Look() const;
  std::vector<v1::Model> Models() const;
  bool Serves(const std::string& model) const;  // by its last report, ready or not

  // Proxies' side: a call between Enter and Leave is in flight.
  void Enter(OpenCall* call);
  void Leave(OpenCall* call);

 private:
  const int64_t index_;
  const std::string address_;
  std::shared_ptr<grpc::Channel> channel_;  // gRPC's own type wants it shared
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::WorkerService::Stub> worker_;

  mutable std::mutex mutex_;  // guards everything below
  bool known_ = false;
  bool present_ = false;  // has reported since it was last lost
  v1::WatchStatusResponse report_;
  std::vector<v1::Model> models_;
  int64_t picked_ = 0;
  std::set<OpenCall*> open_;
};

}  // namespace qserve::router
