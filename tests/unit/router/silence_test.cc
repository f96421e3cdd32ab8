// A peer's silence is counted while this process is awake.
#include "router/discovery/silence.h"

#include <gtest/gtest.h>

namespace qserve::router {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Silence, GrowsFromCheckToCheckUntilItIsBroken) {
  FakeClock clock;
  Silence silence(milliseconds(500));
  silence.Break(clock.Now());
  for (int i = 1; i <= 8; ++i) {
    clock.Advance(milliseconds(500));
    EXPECT_EQ(silence.Check(clock.Now()), milliseconds(500 * i));
  }
  clock.Advance(milliseconds(100));
  silence.Break(clock.Now());
  clock.Advance(milliseconds(400));
  EXPECT_EQ(silence.Check(clock.Now()), milliseconds(400));
}

TEST(Silence, DoesNotCountOurOwnSleep) {
  FakeClock clock;
  Silence silence(milliseconds(500));
  silence.Break(clock.Now());
  clock.Advance(seconds(120));
  EXPECT_EQ(silence.Check(clock.Now()), seconds(1));
  clock.Advance(milliseconds(500));
  EXPECT_EQ(silence.Check(clock.Now()), milliseconds(1500));
}

}  // namespace
}  // namespace qserve::router
