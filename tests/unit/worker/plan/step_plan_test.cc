// Plans survive the wire, and nothing that arrives on the wire can do harm.
#include "worker/plan/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace qserve::worker::plan {
namespace {

using ::testing::HasSubstr;

StepPlan FullPlan() {
  StepPlan plan;
  plan.step = StepId(7);
  plan.committed_step = StepId(5);
  plan.committed_digest = 0x0123456789abcdef;
  plan.ends = {SlotId(3), SlotId(0)};
  SlotStart start;
  start.slot = SlotId(3);
  start.candidate = 2;
  start.prompt_tokens = 3;
  start.tokens = 4;
  start.sampling.temperature = 0.5f;
  start.sampling.repetition_penalty = 1.1f;
  start.sampling.seed = ~uint64_t{0};
  start.sampling.logprobs = 20;
  start.sampling.min_tokens = 2;
  start.sampling.banned_ids = {1, 2};
  start.sampling.logit_bias = {{5, -100.0f}, {6, 1.5f}};
  start.history = {10, 11, 12, 13};
  plan.starts = {start, SlotStart{.slot = SlotId(9), .prompt_tokens = 1, .tokens = 1}};
  plan.block_deltas = {{SlotId(3), 0, {BlockId(4), BlockId(8)}}, {SlotId(1), 17, {BlockId(2)}}};
  plan.rows = {{SlotId(1), 1100, {kTokenFromLastStep}, true}, {SlotId(3), 0, {10, 11, 12}, false}};
  return plan;
}

// A plan of one row whose bytes are easy to find: the last field of the message is `token`.
std::string OneRowBytes(int32_t token) {
  StepPlan plan;
  plan.rows = {{SlotId(0), 0, {token}, true}};
  return Encode(plan);
}

template <class T>
void Overwrite(std::string& bytes, size_t offset, T value) {
  ASSERT_LE(offset + sizeof(T), bytes.size());
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

TEST(StepPlan, SurvivesTheWire) {
  const StepPlan plan = FullPlan();
  const auto decoded = Decode(Encode(plan));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, plan);
  EXPECT_EQ(plan.token_count(), 4);
}

TEST(StepPlan, EmptyAndShutdownPlansSurviveTheWire) {
  StepPlan plan;
  EXPECT_TRUE(plan.empty());
  EXPECT_EQ(*Decode(Encode(plan)), plan);
  plan.shutdown = true;
  EXPECT_FALSE(plan.empty());
  EXPECT_EQ(*Decode(Encode(plan)), plan);
}

TEST(StepPlan, EveryTruncationIsRefused) {
  const std::string bytes = Encode(FullPlan());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(Decode(std::string_view(bytes).substr(0, size)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
}

TEST(StepPlan, TrailingBytesAreRefused) {
  EXPECT_THAT(std::string(Decode(Encode(FullPlan()) + '\0').status().message()),
              HasSubstr("after the end"));
}

TEST(StepPlan, AnotherVersionIsNamed) {
  std::string bytes = Encode(FullPlan());
  Overwrite<uint32_t>(bytes, 4, 77);
  EXPECT_THAT(std::string(Decode(bytes).status().message()), HasSubstr("version 77"));
}

TEST(StepPlan, HugeCountsAreRefusedBeforeMemoryIsTaken) {
  std::string bytes = OneRowBytes(1);
  Overwrite<uint32_t>(bytes, bytes.size() - 8, std::numeric_limits<uint32_t>::max());
  EXPECT_THAT(std::string(Decode(bytes).status().message()), HasSubstr("longer than the message"));
}

TEST(StepPlan, SenselessValuesAreRefused) {
  EXPECT_TRUE(Decode(OneRowBytes(kTokenFromLastStep)).ok());
  EXPECT_FALSE(Decode(OneRowBytes(-2)).ok());

  const auto refused = [](auto change) {
    StepPlan plan = FullPlan();
    change(plan);
    return Decode(Encode(plan)).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](StepPlan& p) { p.step = StepId(-1); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.ends[0] = SlotId(-1); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].slot = SlotId(-4); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].tokens = 2; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].history[1] = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].sampling.logprobs = -2; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].sampling.top_p = std::nanf(""); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.starts[0].sampling.logit_bias[0].first = -3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.block_deltas[1].first_index = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.block_deltas[0].blocks[0] = BlockId(-1); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.rows[0].tokens.clear(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.rows[1].tokens[1] = kTokenFromLastStep; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.rows[0].first_position = -1; }));
  EXPECT_TRUE(refused(
      [](StepPlan& p) { p.rows[1].first_position = std::numeric_limits<int32_t>::max() - 1; }));
}

// Mutated bytes are either refused or mean a plan that encodes to the very same bytes.
TEST(StepPlan, MutatedBytesAreRefusedOrExact) {
  std::mt19937 random(20240501);
  const std::string original = Encode(FullPlan());
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = original;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < changes; ++i) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        default:
          bytes.insert(at, std::string(1 + random() % 8, static_cast<char>(random())));
      }
      if (bytes.empty()) bytes = "x";
    }
    const auto plan = Decode(bytes);
    if (!plan.ok()) continue;
    ++accepted;
    EXPECT_EQ(Encode(*plan), bytes);
  }
  EXPECT_GT(accepted, 100);
}

TEST(StepPlan, DigestTellsSlotsIdsAndOrderApart) {
  const auto digest = [](std::vector<std::pair<int, int>> pairs) {
    StepResult result;
    for (const auto& [slot, id] : pairs) result.tokens.push_back({.slot = SlotId(slot), .id = id});
    return DigestTokens(result);
  };
  EXPECT_EQ(digest({{0, 5}, {1, 6}}), digest({{0, 5}, {1, 6}}));
  EXPECT_NE(digest({{0, 5}, {1, 6}}), digest({{1, 6}, {0, 5}}));
  EXPECT_NE(digest({{0, 5}, {1, 6}}), digest({{0, 5}, {1, 7}}));
  EXPECT_NE(digest({{0, 5}, {1, 6}}), digest({{0, 5}, {2, 6}}));
  EXPECT_NE(digest({}), digest({{0, 0}}));
}

}  // namespace
}  // namespace qserve::worker::plan
