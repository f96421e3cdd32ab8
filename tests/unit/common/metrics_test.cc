// The endpoint's text shows what was counted, and gauges are set at the time of the scrape.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/metrics/metrics.h"

namespace qserve {
namespace {

TEST(Metrics, TextShowsCountersAndFreshGauges) {
  Metrics metrics;
  metrics.AddCounter("qserve_test_total", "Things").Increment(3);
  prometheus::Gauge& gauge = metrics.AddGauge("qserve_test_now", "Now");
  metrics.OnCollect([&gauge] { gauge.Set(42); });
  metrics.AddHistogram("qserve_test_seconds", "Times", LatencyBuckets()).Observe(0.5);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, testing::HasSubstr("qserve_test_total 3"));
  EXPECT_THAT(text, testing::HasSubstr("qserve_test_now 42"));
  EXPECT_THAT(text, testing::HasSubstr("qserve_test_seconds_count 1"));
}

TEST(Metrics, ClearedUpdatesRunNoMore) {
  Metrics metrics;
  int updates = 0;
  metrics.OnCollect([&updates] { ++updates; });
  metrics.Text();
  metrics.ClearUpdates();
  metrics.Text();
  EXPECT_EQ(updates, 1);
}

TEST(Metrics, RefusesAnAddressInUse) {
  Metrics first;
  ASSERT_TRUE(first.Serve("127.0.0.1:39173").ok());
  Metrics second;
  EXPECT_FALSE(second.Serve("127.0.0.1:39173").ok());
}

}  // namespace
}  // namespace qserve
