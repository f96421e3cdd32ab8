// What stands in a plan: the scheduler driven by hand, its plans run by the fake executor.
#include "worker/sched/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/fakes/fake_executor.h"

namespace qserve::worker::sched {
namespace {

using plan::BlockId;
using plan::SlotId;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr TimePoint kNow{std::chrono::seconds(10)};

Request MakeRequest(int64_t id, int32_t prompt_tokens, int32_t max_tokens) {
  Request request;
  request.id = RequestId(id);
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>(id) * 1000 + i % 1000);
  }
  request.max_tokens = max_tokens;
  request.arrival = kNow;
  return request;
}

class SchedulerTest : public ::testing::Test {
 protected:
  void Make(SchedulerOptions options) {
    options_ = options;
    scheduler_ = std::make_unique<Scheduler>(options);
    executor_ = std::make_unique<fakes::FakeExecutor>(
        fakes::FakeExecutorOptions{.limits = {.slots = options.slots,
                                              .blocks = options.blocks,
                                              .max_step_tokens = options.max_step_tokens,
                                              .max_model_len = options.max_model_len,
                                              .kv_bytes_per_token = 1}});
  }
  void SetUp() override {
    Make({.slots = 4, .blocks = 16, .max_step_tokens = 256, .max_model_len = 1024});
  }

  void Submit(Request request) {
    const absl::Status status = scheduler_->Submit(std::move(request), kNow);
    ASSERT_TRUE(status.ok()) << status;
  }
  const plan::StepPlan& Plan() {
    scheduler_->Plan(kNow, plan_);
    if (!plan_.empty()) {
      const absl::Status status = executor_->Enqueue(plan_);
      EXPECT_TRUE(status.ok()) << status;
    }
    const absl::Status invariants = scheduler_->CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
    return plan_;
  }
  void Commit() {
    auto result = executor_->Await(scheduler_->oldest_in_flight());
    ASSERT_TRUE(result.ok()) << result.status();
    const absl::Status status = scheduler_->Commit(*std::move(result), kNow);
    ASSERT_TRUE(status.ok()) << status;
    const absl::Status invariants = scheduler_->CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
  }
  void Step() {
    Plan();
    Commit();
  }
  std::vector<TokenEvent> Events() {
    std::vector<TokenEvent> events;
    scheduler_->TakeEvents(events);
    return events;
  }

  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<fakes::FakeExecutor> executor_;
  plan::StepPlan plan_;
};

TEST_F(SchedulerTest, NothingToDoIsAnEmptyPlan) {
  EXPECT_TRUE(Plan().empty());
  EXPECT_EQ(scheduler_->steps_in_flight(), 0);
}

TEST_F(SchedulerTest, APromptIsFedFromItsFirstTokenAndItsLastDrawsOne) {
  Submit(MakeRequest(1, 70, 2));
  const plan::StepPlan& plan = Plan();
  ASSERT_THAT(plan.starts, SizeIs(1));
  EXPECT_EQ(plan.starts[0].prompt_tokens, 70);
  EXPECT_EQ(plan.starts[0].tokens, 70);
  ASSERT_THAT(plan.block_deltas, SizeIs(1));
  EXPECT_THAT(plan.block_deltas[0].blocks, ElementsAre(BlockId(0), BlockId(1)));
  ASSERT_THAT(plan.rows, SizeIs(1));
  EXPECT_EQ(plan.rows[0].first_position, 0);
  EXPECT_THAT(plan.rows[0].tokens, SizeIs(70));
  EXPECT_TRUE(plan.rows[0].sample);
  Commit();
  EXPECT_THAT(Events(), SizeIs(1));
}

TEST_F(SchedulerTest, ThePromptIsCutByTheBudget) {
  Make({.slots = 4, .blocks = 16, .max_step_tokens = 30, .max_model_len = 1024});
  Submit(MakeRequest(1, 70, 2));
  Plan();
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(30));
  EXPECT_FALSE(plan_.rows[0].sample);
  Commit();
  Plan();
  EXPECT_EQ(plan_.rows[0].first_position, 30);
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(30));
  Commit();
  Plan();
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(10));
  EXPECT_TRUE(plan_.rows[0].sample);
}

TEST_F(SchedulerTest, TheStepAfterADrawTakesItsTokenUnseen) {
  Submit(MakeRequest(1, 10, 5));
  Plan();
  Plan();  // the first is still in flight
  ASSERT_THAT(plan_.rows, SizeIs(1));
  EXPECT_THAT(plan_.rows[0].tokens, ElementsAre(plan::kTokenFromLastStep));
  EXPECT_EQ(plan_.rows[0].first_position, 10);
  Commit();
  Commit();
  const std::vector<TokenEvent> events = Events();
  ASSERT_THAT(events, SizeIs(2));
  Plan();  // now both tokens are known
  EXPECT_THAT(plan_.rows[0].tokens, ElementsAre(events[1].token->id));
}

TEST_F(SchedulerTest, PlansCarryTheDigestOfTheLastCommittedStep) {
  Submit(MakeRequest(1, 10, 5));
  Plan();
  EXPECT_EQ(plan_.step, plan::StepId(1));
  EXPECT_EQ(plan_.committed_step, plan::StepId(0));
  auto result = executor_->Await(plan::StepId(1));
  const uint64_t digest = plan::DigestTokens(*result);
  ASSERT_TRUE(scheduler_->Commit(*std::move(result), kNow).ok());
  Plan();
  EXPECT_EQ(plan_.step, plan::StepId(2));
  EXPECT_EQ(plan_.committed_step, plan::StepId(1));
  EXPECT_EQ(plan_.committed_digest, digest);
}

TEST_F(SchedulerTest, AResultThatIsNotThePlansIsAnError) {
  EXPECT_FALSE(scheduler_->Commit({.step = plan::StepId(1), .tokens = {}}, kNow).ok());
  Submit(MakeRequest(1, 10, 5));
  Plan();
  const auto commit = [this](int64_t step, std::vector<plan::SampledToken> tokens) {
    return scheduler_->Commit({.step = plan::StepId(step), .tokens = std::move(tokens)}, kNow);
  };
  EXPECT_EQ(commit(2, {{.slot = SlotId(0), .id = 1}}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(commit(1, {}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(commit(1, {{.slot = SlotId(3), .id = 1}}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(commit(1, {{.slot = SlotId(0), .id = -1}}).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(commit(1, {{.slot = SlotId(0), .id = 1}}).ok());
}

TEST_F(SchedulerTest, DecodesComeBeforeChunksAndChunksBeforeNewcomers) {
  Make({.slots = 4, .blocks = 32, .max_step_tokens = 100, .max_model_len = 1024});
  Submit(MakeRequest(1, 20, 20));
  Step();
  Submit(MakeRequest(2, 250, 5));
  Submit(MakeRequest(3, 5, 5));
  Step();
  Plan();
  ASSERT_THAT(plan_.rows, SizeIs(2));
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(1));
  EXPECT_THAT(plan_.rows[1].tokens, SizeIs(99));
  EXPECT_EQ(plan_.token_count(), 100);
  Commit();
  Plan();  // the rest of the long prompt leaves room for the newcomer
  ASSERT_THAT(plan_.rows, SizeIs(3));
  EXPECT_THAT(plan_.rows[1].tokens, SizeIs(52));
  EXPECT_THAT(plan_.rows[2].tokens, SizeIs(5));
}

TEST_F(SchedulerTest, RowsOfAnEndedSequenceAreDropped) {
  Request request = MakeRequest(1, 10, 50);
  request.stop_ids.resize(1000);
  for (int32_t i = 0; i < 1000; ++i) request.stop_ids[static_cast<size_t>(i)] = i;  // any token
  Submit(std::move(request));
  Plan();
  Plan();  // feeds the token that will turn out to be the last
  Commit();
  const std::vector<TokenEvent> events = Events();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].finish, FinishReason::kStop);
  EXPECT_EQ(events[0].matched_stop_id, events[0].token->id);
  EXPECT_FALSE(scheduler_->idle());  // a row is in flight
  EXPECT_EQ(scheduler_->Stats().blocks_used, 0);
  Commit();
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_THAT(Events(), SizeIs(0));
  EXPECT_EQ(scheduler_->Stats().generated_tokens, 1);
  EXPECT_EQ(scheduler_->Stats().rows_dropped, 1);
}

TEST_F(SchedulerTest, ADroppedRowThatFillsABlockIsNotCached) {
  Request request = MakeRequest(1, 63, 50);
  request.stop_ids.resize(1000);
  for (int32_t i = 0; i < 1000; ++i) request.stop_ids[static_cast<size_t>(i)] = i;
  Submit(std::move(request));
  Plan();
  Plan();
  ASSERT_EQ(plan_.rows[0].first_position, 63);  // the block's last row
  Commit();
  Commit();
  EXPECT_EQ(scheduler_->Stats().blocks_cached, 0);
  EXPECT_EQ(scheduler_->Stats().blocks_used, 0);
}

TEST_F(SchedulerTest, NoRowIsPlannedPastTheLastToken) {
  Submit(MakeRequest(1, 10, 2));
  Plan();
  Plan();
  EXPECT_TRUE(plan_.rows[0].sample);
  Commit();
  EXPECT_TRUE(Plan().empty());  // the second token is in flight and is the last
  Commit();
  EXPECT_EQ(Events().back().finish, FinishReason::kLength);
  EXPECT_EQ(scheduler_->Stats().rows_dropped, 0);
}

TEST_F(SchedulerTest, AFullyCachedPromptComputesItsLastBlockAgain) {
  Submit(MakeRequest(1, 128, 1));
  Step();
  EXPECT_EQ(scheduler_->Stats().blocks_cached, 2);
  Request again = MakeRequest(1, 128, 1);
  again.id = RequestId(2);
  Submit(std::move(again));
  Plan();
  EXPECT_EQ(plan_.rows[0].first_position, 64);
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(64));
  ASSERT_THAT(plan_.block_deltas[0].blocks, SizeIs(2));
  EXPECT_EQ(plan_.block_deltas[0].blocks[0], BlockId(0));
  EXPECT_NE(plan_.block_deltas[0].blocks[1], BlockId(1));  // a cached block is never written
  Commit();
  EXPECT_EQ(Events().back().usage.cached_tokens, 64);
  EXPECT_EQ(scheduler_->Stats().blocks_cached, 2);  // the second copy was given up
}

TEST_F(SchedulerTest, APromptOneTokenLongerThanWhatIsCachedComputesOneToken) {
  Submit(MakeRequest(1, 128, 1));
  Step();
  Request longer = MakeRequest(1, 129, 1);
  longer.id = RequestId(2);
  Submit(std::move(longer));
  Plan();
  EXPECT_EQ(plan_.rows[0].first_position, 128);
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(1));
}

TEST_F(SchedulerTest, EqualPromptsComputedAtOnceEndUpSharingBlocks) {
  Submit(MakeRequest(1, 100, 10));
  Request twin = MakeRequest(1, 100, 10);
  twin.id = RequestId(2);
  Submit(std::move(twin));
  Plan();
  EXPECT_EQ(scheduler_->Stats().blocks_used, 4);
  Commit();
  EXPECT_EQ(scheduler_->Stats().blocks_used, 3);
  Plan();  // tells the executor
  ASSERT_THAT(plan_.block_deltas, SizeIs(1));
  EXPECT_EQ(plan_.block_deltas[0].first_index, 0);
  EXPECT_EQ(plan_.block_deltas[0].blocks[0], BlockId(0));
}

TEST_F(SchedulerTest, CandidatesWaitForTheSharedPromptAndThenComputeOnlyItsTail) {
  Make({.slots = 4, .blocks = 32, .max_step_tokens = 1000, .max_model_len = 1024});
  Request request = MakeRequest(1, 200, 4);
  request.candidates = 3;
  Submit(std::move(request));
  Plan();
  ASSERT_THAT(plan_.rows, SizeIs(1));
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(200));
  Commit();
  Plan();
  ASSERT_THAT(plan_.rows, SizeIs(3));
  EXPECT_THAT(plan_.rows[0].tokens, SizeIs(1));
  EXPECT_EQ(plan_.rows[1].first_position, 192);
  EXPECT_THAT(plan_.rows[1].tokens, SizeIs(8));
  EXPECT_THAT(plan_.rows[2].tokens, SizeIs(8));
  EXPECT_EQ(scheduler_->Stats().blocks_used, 3 + 3);
}

TEST_F(SchedulerTest, TheNextCandidateTakesOverWhenTheFirstIsCancelledInItsPrompt) {
  Make({.slots = 4, .blocks = 32, .max_step_tokens = 64, .max_model_len = 1024});
  Request request = MakeRequest(1, 200, 4);
  request.candidates = 3;
  Submit(std::move(request));
  Step();
  scheduler_->Cancel(RequestId(1), 0, FinishReason::kCancelled, kNow);
  Plan();
  ASSERT_THAT(plan_.starts, SizeIs(1));
  EXPECT_EQ(plan_.starts[0].candidate, 1u);
  EXPECT_EQ(plan_.rows[0].first_position, 64);
}

TEST_F(SchedulerTest, PenaltiesBringTheHistory) {
  Request request = MakeRequest(1, 10, 5);
  request.sampling.repetition_penalty = 1.5f;
  request.resume = {{.output_ids = {7, 8}, .finished = false}};
  Submit(std::move(request));
  Plan();
  ASSERT_THAT(plan_.starts[0].history, SizeIs(12));
  EXPECT_EQ(plan_.starts[0].history.back(), 8);
  EXPECT_EQ(plan_.starts[0].tokens, 12);
  EXPECT_EQ(plan_.starts[0].prompt_tokens, 10);
  Commit();
  Step();
}

TEST_F(SchedulerTest, WhatCanNeverFitIsRefused) {
  const auto message = [this](Request request) {
    const absl::Status status = scheduler_->Submit(std::move(request), kNow);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(MakeRequest(1, 1020, 5)), HasSubstr("model length"));
  Make({.slots = 4, .blocks = 2, .max_step_tokens = 256, .max_model_len = 1024});
  EXPECT_THAT(message(MakeRequest(1, 128, 2)), HasSubstr("KV blocks"));
  EXPECT_TRUE(scheduler_->Submit(MakeRequest(1, 128, 1), kNow).ok());
  EXPECT_EQ(scheduler_->Submit(MakeRequest(1, 1, 1), kNow).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(message(MakeRequest(2, 0, 5)), HasSubstr("empty"));
  EXPECT_THAT(message(MakeRequest(2, 5, 0)), HasSubstr("max_tokens"));
  Request negative = MakeRequest(2, 5, 5);
  negative.prompt[3] = plan::kTokenFromLastStep;
  EXPECT_THAT(message(negative), HasSubstr("negative"));
  Request resumed = MakeRequest(2, 5, 2);
  resumed.resume = {{.output_ids = {1, 2, 3}, .finished = false}};
  EXPECT_THAT(message(resumed), HasSubstr("more tokens"));
  resumed.resume = {{.output_ids = {1}, .finished = true}};
  EXPECT_THAT(message(resumed), HasSubstr("finished"));
  resumed.resume.resize(2);
  EXPECT_THAT(message(resumed), HasSubstr("every candidate"));
}

}  // namespace
}  // namespace qserve::worker::sched
