// Signals arrive as numbered events.
#include <unistd.h>

#include <csignal>
#include <future>

#include <gtest/gtest.h>

#include "common/shutdown.h"

namespace qserve {
namespace {

TEST(ShutdownSignal, CountsSignals) {
  std::promise<void> second;
  {
    ShutdownSignal signal([&second](int count) {
      if (count == 2) second.set_value();
    });
    ::kill(::getpid(), SIGTERM);
    ::usleep(50'000);  // Equal pending signals merge: the first must have been read.
    ::kill(::getpid(), SIGTERM);
    EXPECT_EQ(second.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  }
}

}  // namespace
}  // namespace qserve
