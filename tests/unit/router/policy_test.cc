// Who is picked, given loads.
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "router/policy/routing_policy.h"

namespace qserve::router {
namespace {

TEST(LeastLoaded, BelievesTheLargerOfReportAndOwnCount) {
  auto policy = MakeRoutingPolicy("least-loaded");
  ASSERT_TRUE(policy.ok());
  // The first reports nothing yet, but this router has just sent five calls there.
  const std::vector<ReplicaLoad> loads = {{.index = 0, .in_flight = 5},
                                          {.index = 1, .running = 2, .waiting = 1, .in_flight = 0}};
  EXPECT_EQ((*policy)->Pick({}, loads), 1u);
}

TEST(LeastLoaded, SpreadsTiesByHowOftenPicked) {
  auto policy = MakeRoutingPolicy("least-loaded");
  std::vector<ReplicaLoad> loads = {{.index = 0}, {.index = 1}, {.index = 2}};
  std::vector<int> counts(3);
  for (int i = 0; i < 30; ++i) {
    const size_t pick = (*policy)->Pick({}, loads);
    ++counts[pick];
    ++loads[pick].picked;
  }
  EXPECT_EQ(counts, (std::vector<int>{10, 10, 10}));
}

TEST(RoundRobin, TakesTurns) {
  auto policy = MakeRoutingPolicy("round-robin");
  const std::vector<ReplicaLoad> loads(3);
  std::vector<size_t> picks;
  for (int i = 0; i < 6; ++i) picks.push_back((*policy)->Pick({}, loads));
  EXPECT_EQ(picks, (std::vector<size_t>{0, 1, 2, 0, 1, 2}));
}

TEST(RandomPolicy, ReachesEveryReplica) {
  auto policy = MakeRoutingPolicy("random");
  const std::vector<ReplicaLoad> loads(3);
  std::set<size_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert((*policy)->Pick({}, loads));
  EXPECT_EQ(seen.size(), 3u);
}

TEST(MakeRoutingPolicy, RefusesUnknownNames) {
  EXPECT_EQ(MakeRoutingPolicy("fastest").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qserve::router
