// A router over replicas of this process, each behind a relay.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "router/server.h"
#include "tests/integration/edge_client.h"
#include "tests/integration/edge_relay.h"
#include "tests/integration/edge_replica.h"

namespace qserve::integration {

class RouterTest : public testing::Test {
 protected:
  // Waits until the router knows them all; `others` run already and come first.
  void Start(const std::vector<ReplicaOptions>& options,
             const std::vector<std::string>& others = {}) {
    router::RouterOptions router_options;
    router_options.listen = "127.0.0.1:0";
    router_options.workers = others;
    for (const ReplicaOptions& one : options) {
      replicas_.push_back(std::make_unique<TestReplica>(one));
      relays_.push_back(std::make_unique<Relay>(replicas_.back()->port()));
      router_options.workers.push_back(relays_.back()->address());
    }
    auto router = router::Router::Start(router_options, clock_, metrics_);
    ASSERT_TRUE(router.ok()) << router.status();
    router_ = *std::move(router);
    channel_ = Connect("127.0.0.1:" + std::to_string(router_->port()));
    ASSERT_TRUE(WaitsForReady(static_cast<int64_t>(router_options.workers.size())));
  }
  ~RouterTest() override {
    for (const auto& replica : replicas_) replica->gate().Open();
    router_.reset();
  }

  bool WaitsForReady(int64_t count) {
    return Eventually([&] { return router_->ready_replicas() == count; });
  }
  void CloseGates() {
    for (const auto& replica : replicas_) replica->gate().Close();
  }
  void OpenGates() {
    for (const auto& replica : replicas_) replica->gate().Open();
  }
  // The replica that the only open request has gone to.
  size_t BusyReplica() {
    size_t busy = 0;
    EXPECT_TRUE(Eventually([&] {
      for (busy = 0; busy < replicas_.size(); ++busy) {
        if (!replicas_[busy]->engine().Idle()) return true;
      }
      return false;
    }));
    return busy;
  }
  // Of a stream straight from a replica of the same kind that nobody disturbs.
  static Outcome Undisturbed(const v1::GenerationSpec& spec) {
    TestReplica replica;
    return Stream(Connect(replica.address()), spec);
  }
  // The value of one of the router's metrics.
  double Metric(const std::string& name) {
    const std::string text = metrics_.Text();
    const size_t place = text.find("\n" + name + " ");
    return place == std::string::npos ? -1 : std::stod(text.substr(place + name.size() + 2));
  }

  SteadyClock clock_;
  Metrics metrics_;
  std::vector<std::unique_ptr<TestReplica>> replicas_;
  std::vector<std::unique_ptr<Relay>> relays_;
  std::unique_ptr<router::Router> router_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace qserve::integration
