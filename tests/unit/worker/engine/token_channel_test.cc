// Readers are called when there is something new, and take everything at once.
#include "worker/engine/token_channel.h"

#include <gtest/gtest.h>

namespace qserve::worker::engine {
namespace {

TEST(TokenChannel, CallsTheReaderWhenItStopsBeingEmpty) {
  int calls = 0;
  TokenChannel channel([&calls] { ++calls; });
  EXPECT_TRUE(channel.TakeAll().empty());
  channel.Push({.request = RequestId(1), .candidate = 0});
  channel.Push({.request = RequestId(1), .candidate = 1});
  EXPECT_EQ(calls, 1);
  const std::vector<TokenEvent> events = channel.TakeAll();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].candidate, 0);
  EXPECT_EQ(events[1].candidate, 1);
  EXPECT_TRUE(channel.TakeAll().empty());
  channel.Push({.request = RequestId(1)});
  EXPECT_EQ(calls, 2);
}

TEST(TokenChannel, MayBeReadFromWithinTheCall) {
  size_t taken = 0;
  TokenChannel* self = nullptr;
  TokenChannel channel([&] { taken += self->TakeAll().size(); });
  self = &channel;
  channel.Push({});
  channel.Push({});
  EXPECT_EQ(taken, 2u);
}

}  // namespace
}  // namespace qserve::worker::engine
