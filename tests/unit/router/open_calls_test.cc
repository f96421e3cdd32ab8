// Calls open at a router: a limit, and a way to reach them all.
#include "router/proxy/open_calls.h"

#include <gtest/gtest.h>

#include "common/metrics/metrics.h"

namespace qserve::router {
namespace {

struct CountedCall final : ClientCall {
  void CutShort() override { ++cut; }
  int cut = 0;
};

TEST(OpenCalls, AreLimitedAndCounted) {
  Metrics metrics;
  prometheus::Gauge& gauge = metrics.AddGauge("open", "help");
  OpenCalls calls(gauge);
  for (int64_t i = 0; i < kMaxOpenCalls; ++i) ASSERT_TRUE(calls.Reserve());
  EXPECT_FALSE(calls.Reserve());
  EXPECT_EQ(calls.count(), kMaxOpenCalls);
  EXPECT_EQ(gauge.Value(), static_cast<double>(kMaxOpenCalls));
  calls.Release();
  EXPECT_TRUE(calls.Reserve());
  EXPECT_FALSE(calls.Reserve());
}

TEST(OpenCalls, AreCutShortWhileTheyAreThere) {
  Metrics metrics;
  OpenCalls calls(metrics.AddGauge("open", "help"));
  CountedCall first;
  CountedCall second;
  calls.Add(&first);
  calls.Add(&second);
  calls.Remove(&first);
  calls.CutAll();
  EXPECT_EQ(first.cut, 0);
  EXPECT_EQ(second.cut, 1);
}

}  // namespace
}  // namespace qserve::router
