// Plans become the inputs of a step, and plans that contradict what came before are refused.
#include "worker/exec/slot_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace qserve::worker::exec {
namespace {

using plan::BlockId;
using plan::SlotId;
using plan::StepPlan;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kVocabulary = 100;

ExecutorLimits Limits() {
  return {.slots = 4,
          .blocks = 8,
          .max_step_tokens = 100,
          .max_model_len = 192,
          .kv_bytes_per_token = 1};
}

plan::SlotStart Start(int32_t slot, int32_t prompt, int32_t tokens = 0) {
  plan::SlotStart start;
  start.slot = SlotId(slot);
  start.prompt_tokens = prompt;
  start.tokens = tokens == 0 ? prompt : tokens;
  return start;
}

plan::SequenceRows Rows(int32_t slot, int32_t first, std::vector<int32_t> tokens, bool sample) {
  return {
      .slot = SlotId(slot), .first_position = first, .tokens = std::move(tokens), .sample = sample};
}

plan::BlockDelta Blocks(int32_t slot, int32_t first, const std::vector<int32_t>& blocks) {
  plan::BlockDelta delta{.slot = SlotId(slot), .first_index = first, .blocks = {}};
  for (const int32_t block : blocks) delta.blocks.emplace_back(block);
  return delta;
}

// Slot 1 with a prompt of three tokens, of which two are computed.
StepPlan FirstPlan() {
  StepPlan plan;
  plan.starts = {Start(1, 3)};
  plan.block_deltas = {Blocks(1, 0, {5})};
  plan.rows = {Rows(1, 0, {10, 11}, false)};
  return plan;
}

StepPlan RowsOnly(plan::SequenceRows rows) {
  StepPlan plan;
  plan.rows = {std::move(rows)};
  return plan;
}

TEST(SlotTable, FollowsASequenceFromPromptToFeedback) {
  SlotTable table(Limits(), kVocabulary);
  auto batch = table.Apply(FirstPlan());
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->token_ids, ElementsAre(10, 11));
  EXPECT_THAT(batch->logit_rows, IsEmpty());
  EXPECT_EQ(batch->sequences[0].row_count, 2);
  EXPECT_THAT(batch->sequences[0].block_table, ElementsAre(5));

  batch = table.Apply(RowsOnly(Rows(1, 2, {12}, true)));
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->logit_rows, ElementsAre(0));
  EXPECT_EQ(batch->sampling[0].slot, 1);
  EXPECT_EQ(batch->sampling[0].position, 3u);

  batch = table.Apply(RowsOnly(Rows(1, 3, {plan::kTokenFromLastStep}, true)));
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->token_ids, ElementsAre(~1));
  EXPECT_EQ(batch->sequences[0].first_position, 3);
  EXPECT_EQ(batch->sampling[0].position, 4u);
}

TEST(SlotTable, PutsSeveralSequencesIntoOneBatch) {
  SlotTable table(Limits(), kVocabulary);
  StepPlan plan = FirstPlan();
  plan.starts.push_back(Start(0, 66));
  plan.block_deltas.push_back(Blocks(0, 0, {2, 7}));
  plan.rows.push_back(Rows(0, 64, {1, 2}, true));  // 64 positions came from a prefix hit
  const auto batch = table.Apply(plan);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->token_ids, ElementsAre(10, 11, 1, 2));
  EXPECT_EQ(batch->sequences[1].first_row, 2);
  EXPECT_EQ(batch->sequences[1].first_position, 64);
  EXPECT_THAT(batch->logit_rows, ElementsAre(3));
}

TEST(SlotTable, BlockDeltasReplaceTheTail) {
  SlotTable table(Limits(), kVocabulary);
  StepPlan plan = FirstPlan();
  plan.block_deltas = {Blocks(1, 0, {5, 6, 7}), Blocks(1, 1, {3})};
  const auto batch = table.Apply(plan);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->sequences[0].block_table, ElementsAre(5, 3));
}

TEST(SlotTable, HistoriesGrowByWhatWasDrawn) {
  SlotTable table(Limits(), kVocabulary);
  StepPlan plan;
  plan::SlotStart start = Start(2, 2, 3);  // one token of output already: it was preempted
  start.sampling.presence_penalty = 1;
  start.sampling.min_tokens = 2;
  start.sampling.banned_ids = {9};
  start.sampling.logit_bias = {{4, 1.5f}};
  start.history = {20, 21, 22};
  plan.starts = {start};
  plan.block_deltas = {Blocks(2, 0, {0})};
  plan.rows = {Rows(2, 0, {20, 21, 22}, true)};
  auto batch = table.Apply(plan);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->sampling[0].prompt_ids, ElementsAre(20, 21));
  EXPECT_THAT(batch->sampling[0].output_ids, ElementsAre(22));
  EXPECT_THAT(batch->sampling[0].banned_ids, ElementsAre(9));  // one of two tokens so far
  EXPECT_THAT(batch->sampling[0].bias_ids, ElementsAre(4));
  EXPECT_THAT(batch->sampling[0].bias_values, ElementsAre(1.5f));

  plan::StepResult result;
  result.tokens = {{.slot = SlotId(2), .id = 30, .logprob = 0, .top = {}}};
  EXPECT_TRUE(table.NeedsResults(RowsOnly(Rows(2, 3, {30}, true))));
  table.Record(*batch, result);
  batch = table.Apply(RowsOnly(Rows(2, 3, {30}, true)));
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(batch->sampling[0].output_ids, ElementsAre(22, 30));
  EXPECT_THAT(batch->sampling[0].banned_ids, IsEmpty());
}

TEST(SlotTable, ATokenOfASequenceThatEndedMeanwhileIsNobodys) {
  SlotTable table(Limits(), kVocabulary);
  const auto start_of = [](std::vector<int32_t> history) {
    StepPlan plan;
    const auto tokens = static_cast<int32_t>(history.size());
    plan::SlotStart start = Start(2, tokens, tokens);
    start.sampling.presence_penalty = 1;
    start.history = history;
    plan.starts = {start};
    plan.block_deltas = {Blocks(2, 0, {0})};
    plan.rows = {Rows(2, 0, history, true)};
    return plan;
  };
  const auto first = table.Apply(start_of({20, 21}));
  ASSERT_TRUE(first.ok()) << first.status();
  StepPlan next = start_of({5, 6, 7});  // prepared before the first step was read
  next.ends = {SlotId(2)};
  const auto second = table.Apply(next);
  ASSERT_TRUE(second.ok()) << second.status();
  plan::StepResult result;
  result.tokens = {{.slot = SlotId(2), .id = 30, .logprob = 0, .top = {}}};
  table.Record(*first, result);
  result.tokens[0].id = 31;
  table.Record(*second, result);
  const auto third = table.Apply(RowsOnly(Rows(2, 3, {31}, true)));
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_THAT(third->sampling[0].prompt_ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(third->sampling[0].output_ids, ElementsAre(31));
}

TEST(SlotTable, ASlotIsFreeForAnotherSequenceInThePlanThatEndsIt) {
  SlotTable table(Limits(), kVocabulary);
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan = FirstPlan();
  plan.ends = {SlotId(1)};
  EXPECT_TRUE(table.Apply(plan).ok());
}

// A plan after FirstPlan, and what its refusal must say.
struct BadPlan {
  const char* name;
  const char* reason;
  std::function<void(StepPlan&)> spoil;
};

class SlotTableRefuses : public ::testing::TestWithParam<BadPlan> {};

TEST_P(SlotTableRefuses, ThePlan) {
  SlotTable table(Limits(), kVocabulary);
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan good = RowsOnly(Rows(1, 2, {12}, true));
  StepPlan bad = good;
  GetParam().spoil(bad);
  const auto batch = table.Apply(bad);
  EXPECT_EQ(batch.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(batch.status().message()), HasSubstr(GetParam().reason));
}

std::vector<BadPlan> BadPlans() {
  const auto rows = [](plan::SequenceRows value) {
    return [value](StepPlan& plan) { plan.rows = {value}; };
  };
  const auto delta = [](plan::BlockDelta value) {
    return [value](StepPlan& plan) { plan.block_deltas = {value}; };
  };
  const auto start = [](const std::function<void(plan::SlotStart&)>& change) {
    return [change](StepPlan& plan) {
      plan::SlotStart value = Start(2, 3);
      change(value);
      plan.starts = {value};
    };
  };
  return {
      {"EndOfAFreeSlot", "slot 3 is not in use", [](StepPlan& p) { p.ends = {SlotId(3)}; }},
      {"EndOutOfRange", "slot 4 of 4", [](StepPlan& p) { p.ends = {SlotId(4)}; }},
      {"NegativeSlot", "slot -1 of 4", rows(Rows(-1, 2, {12}, true))},
      {"StartOfAUsedSlot", "slot 1 is in use", [](StepPlan& p) { p.starts = {Start(1, 3)}; }},
      {"StartOutOfRange", "slot 9 of 4", start([](auto& s) { s.slot = SlotId(9); })},
      {"EmptyPrompt", "0 of them prompt", start([](auto& s) { s.prompt_tokens = 0; })},
      {"FewerTokensThanPrompt", "starts with 2", start([](auto& s) { s.tokens = 2; })},
      {"TooLong", "at most 192", start([](auto& s) { s.tokens = 193; })},
      {"UnaskedHistory", "history", start([](auto& s) { s.history = {1, 2, 3}; })},
      {"MissingHistory", "history", start([](auto& s) { s.sampling.presence_penalty = 1; })},
      {"HistoryOutsideTheVocabulary", "token 100", start([](auto& s) {
         s.sampling.presence_penalty = 1;
         s.history = {1, 2, 100};
       })},
      {"BannedOutsideTheVocabulary", "banned token 100",
       start([](auto& s) { s.sampling.banned_ids = {100}; })},
      {"BiasOutsideTheVocabulary", "token -1",
       start([](auto& s) { s.sampling.logit_bias = {{-1, 1.0f}}; })},
      {"NegativeTemperature", "sampling", start([](auto& s) { s.sampling.temperature = -1; })},
      {"BlockOutOfRange", "block 8 of 8", delta(Blocks(1, 0, {8}))},
      {"NegativeBlock", "block -1", delta(Blocks(1, 0, {-1}))},
      {"HoleInTheTable", "index 2", delta(Blocks(1, 2, {1}))},
      {"TooManyBlocks", "blocks at index 0", delta(Blocks(1, 0, {1, 2, 3, 4}))},
      {"SkippedPosition", "expected 2", rows(Rows(1, 3, {12}, true))},
      {"RepeatedPosition", "expected 2", rows(Rows(1, 1, {12}, false))},
      {"MoreRowsThanTokens", "expected 2", rows(Rows(1, 2, {12, 13}, true))},
      {"NoRows", "0 rows", rows(Rows(1, 2, {}, false))},
      {"TokenOutsideTheVocabulary", "token 100", rows(Rows(1, 2, {100}, true))},
      {"FeedbackBeforeADraw", "token -1", rows(Rows(1, 2, {plan::kTokenFromLastStep}, true))},
      {"RowsTwice", "rows twice", [](StepPlan& p) { p.rows.push_back(Rows(1, 3, {13}, true)); }},
      {"MissingBlock", "has 0 blocks", delta(Blocks(1, 0, {}))},
      {"TooManyTokens", "at most 100",
       [](StepPlan& p) { p.rows.push_back(Rows(1, 0, std::vector<int32_t>(100, 1), false)); }},
  };
}

INSTANTIATE_TEST_SUITE_P(Plans, SlotTableRefuses, ::testing::ValuesIn(BadPlans()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(SlotTable, SamplingBeforeTheEndOfThePromptIsRefused) {
  SlotTable table(Limits(), kVocabulary);
  StepPlan plan = FirstPlan();
  plan.rows[0].sample = true;
  EXPECT_THAT(std::string(table.Apply(plan).status().message()), HasSubstr("samples after 2 of 3"));
}

}  // namespace
}  // namespace qserve::worker::exec
