// Which replicas are eligible: there, progress, not draining, right model, right numerics.
#include <gtest/gtest.h>

#include "router/registry/registry.h"

namespace qserve::router {
namespace {

v1::WatchStatusResponse Report(const std::string& numerics_id) {
  v1::WatchStatusResponse report;
  report.add_models("demo");
  report.set_numerics_id(numerics_id);
  report.set_making_progress(true);
  return report;
}

class RegistryTest : public testing::Test {
 protected:
  std::unique_ptr<RoutingPolicy> policy_ = *MakeRoutingPolicy("least-loaded");
  Registry registry_{{"127.0.0.1:1", "127.0.0.1:2"}, *policy_};
  Replica& first_ = *registry_.replicas()[0];
  Replica& second_ = *registry_.replicas()[1];
};

TEST_F(RegistryTest, NobodyReportedNobodyPicked) {
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), nullptr);
  EXPECT_TRUE(registry_.Incomplete());
  EXPECT_FALSE(registry_.Knows("demo"));
}

TEST_F(RegistryTest, LossDrainAndStallExclude) {
  first_.OnReport(Report("a"));
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), &first_);
  EXPECT_EQ(registry_.Pick("other", {}, {}, ""), nullptr);
  first_.OnLost();
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), nullptr);
  EXPECT_TRUE(registry_.Knows("demo"));
  v1::WatchStatusResponse report = Report("a");
  report.set_draining(true);
  first_.OnReport(report);
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), nullptr);
  report = Report("a");
  report.set_making_progress(false);
  first_.OnReport(report);
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), nullptr);
}

TEST_F(RegistryTest, ExclusionAndNumericsNarrowTheChoice) {
  first_.OnReport(Report("a"));
  second_.OnReport(Report("b"));
  Replica* const excluded[] = {&first_};
  EXPECT_EQ(registry_.Pick("demo", {}, excluded, ""), &second_);
  EXPECT_EQ(registry_.Pick("demo", {}, {}, "a"), &first_);
  EXPECT_EQ(registry_.Pick("demo", {}, excluded, "a"), nullptr);
  EXPECT_EQ(registry_.ready_count(), 2);
  EXPECT_FALSE(registry_.Incomplete());
}

TEST_F(RegistryTest, ModelsOfEqualNameAreMerged) {
  v1::Model model;
  model.set_name("demo");
  model.add_numerics_ids(std::string("a"));
  first_.OnModels({model});
  model.set_numerics_ids(0, std::string("b"));
  second_.OnModels({model});
  const std::vector<v1::Model> models = registry_.Models();
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0].numerics_ids_size(), 2);
}

// Counts how often it was told that its replica is gone.
class CountingCall final : public OpenCall {
 public:
  void OnReplicaLost() override { ++lost; }
  int lost = 0;
};

TEST_F(RegistryTest, LossReachesOpenCallsOnly) {
  CountingCall open;
  CountingCall closed;
  first_.OnReport(Report("a"));
  first_.Enter(&open);
  first_.Enter(&closed);
  first_.Leave(&closed);
  EXPECT_EQ(first_.Look().in_flight, 1);
  first_.OnLost();
  EXPECT_EQ(open.lost, 1);
  EXPECT_EQ(closed.lost, 0);
  EXPECT_EQ(registry_.Pick("demo", {}, {}, ""), nullptr);
  first_.Leave(&open);
}

}  // namespace
}  // namespace qserve::router
