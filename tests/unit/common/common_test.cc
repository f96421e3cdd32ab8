// Tests of the small pieces that everything else stands on.
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/entropy.h"
#include "common/hashing.h"
#include "common/log.h"
#include "common/mapped_file.h"
#include "common/philox.h"
#include "common/status_macros.h"
#include "common/typed_id.h"

namespace qserve {
namespace {

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::Status Quarter(int value, int& out) {
  ASSIGN_OR_RETURN(const int half, Half(value));
  ASSIGN_OR_RETURN(out, Half(half));
  return absl::OkStatus();
}

TEST(StatusMacros, PassValuesAndErrorsOn) {
  int out = 0;
  EXPECT_TRUE(Quarter(8, out).ok());
  EXPECT_EQ(out, 2);
  EXPECT_EQ(Quarter(6, out).code(), absl::StatusCode::kInvalidArgument);
}

// The known-answer vectors published with the paper's library (Random123, philox4x32-10).
TEST(Philox, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              testing::ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              testing::ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      testing::ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(Philox, UniformStaysInsideTheOpenInterval) {
  EXPECT_GT(UniformOpen(0), 0.0f);
  EXPECT_LT(UniformOpen(~0u), 1.0f);
}

TEST(BoundedQueue, FullIsAnAnswer) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_TRUE(queue.TryPush(3));
  EXPECT_THAT(queue.Drain(), testing::ElementsAre(2, 3));
}

TEST(BoundedQueue, CloseWakesAWaiter) {
  BoundedQueue<int> queue(1);
  std::thread waiter([&queue] { EXPECT_EQ(queue.Pop(), std::nullopt); });
  queue.Close();
  waiter.join();
  EXPECT_FALSE(queue.TryPush(1));
}

TEST(TypedId, ComparesAndHashes) {
  using A = TypedId<struct ATag, int>;
  EXPECT_LT(A(1), A(2));
  EXPECT_EQ(std::hash<A>()(A(7)), std::hash<A>()(A(7)));
  EXPECT_EQ(ToString(A(7)), "7");
}

TEST(FakeClock, MovesOnlyWhenTold) {
  FakeClock clock;
  const TimePoint start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(std::chrono::seconds(2));
  EXPECT_EQ(ToSeconds(clock.Now() - start), 2.0);
}

TEST(MappedFile, ReadsAndRefuses) {
  const std::string path = testing::TempDir() + "/mapped_file_test";
  std::ofstream(path) << "content";
  const auto text = ReadSmallFile(path, 100);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "content");
  EXPECT_EQ(ReadSmallFile(path, 3).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MappedFile::Open(path + ".absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Hashing, IsStableAcrossMachines) {
  EXPECT_EQ(HexDigest(HashBytes({})), "2d06800538d394c2");
  const int values[] = {1, 2, 3};
  EXPECT_NE(HashSpan<int>(values, 0), HashSpan<int>(values, 1));
}

TEST(Log, RefusesUnknownLevelsAndFormats) {
  EXPECT_FALSE(InitLogging("test", "loud", "text").ok());
  EXPECT_FALSE(InitLogging("test", "info", "xml").ok());
  EXPECT_TRUE(InitLogging("test", "info", "json").ok());
}

TEST(Entropy, IsNeverTheSame) {
  std::set<uint64_t> seeds;
  std::set<std::string> ids;
  for (int i = 0; i < 100; ++i) {
    seeds.insert(DrawSeed());
    ids.insert(DrawId());
    EXPECT_THAT(*ids.begin(), testing::MatchesRegex("[0-9a-f]+"));
  }
  EXPECT_EQ(seeds.size(), 100u);
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_EQ(ids.begin()->size(), 32u);
  // Both halves of a seed are drawn.
  uint64_t ever_set = 0;
  for (const uint64_t seed : seeds) ever_set |= seed;
  EXPECT_EQ(ever_set, ~uint64_t{0});
}

}  // namespace
}  // namespace qserve
