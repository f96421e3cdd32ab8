// How requests end other than by themselves: cancellation in every phase, deadlines, a full queue,
// drain, failures. After each, every block is free or cached (RunUntilIdle looks).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/engine_harness.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::engine {
namespace {

using fakes::CandidateOutcome;
using fakes::Client;
using fakes::EngineHarness;
using fakes::FakeExecutorOptions;
using fakes::MakeRequest;
using fakes::Prompt;
using fakes::RunAlone;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

FakeExecutorOptions Executor(int32_t slots, int32_t blocks) {
  FakeExecutorOptions options;
  options.limits.slots = slots;
  options.limits.blocks = blocks;
  return options;
}

// Ids must be those of the request alone, as far as they go.
void ExpectPrefixOfAlone(const CandidateOutcome& outcome, const EngineRequest& request) {
  std::vector<int32_t> alone = RunAlone(request)[0].ids;
  ASSERT_LE(outcome.ids.size(), alone.size());
  alone.resize(outcome.ids.size());
  EXPECT_EQ(outcome.ids, alone);
}

TEST(EngineCancel, BeforeTheEngineHasSeenIt) {
  EngineHarness harness;
  RequestId id;
  const auto client = harness.Submit(MakeRequest(Prompt(10), 5), &id);
  harness.engine.Cancel(id);
  harness.RunUntilIdle();
  EXPECT_EQ(client->outcome().finish, FinishReason::kCancelled);
  EXPECT_TRUE(client->ids().empty());
  EXPECT_TRUE(harness.executor.steps().empty());
}

TEST(EngineCancel, InTheQueue) {
  EngineHarness harness(Executor(1, 64));
  RequestId id;
  const auto running = harness.Submit(MakeRequest(Prompt(10), 20));
  const auto waiting = harness.Submit(MakeRequest(Prompt(10, 1), 5), &id);
  harness.Turns(4);
  EXPECT_EQ(harness.engine.Stats().waiting, 1);
  harness.engine.Cancel(id);
  harness.Turn();
  EXPECT_EQ(waiting->outcome().finish, FinishReason::kCancelled);
  EXPECT_EQ(harness.engine.Stats().waiting, 0);
  harness.RunUntilIdle();
  EXPECT_EQ(running->ids().size(), 20u);
}

TEST(EngineCancel, InMidPrefillWithAChunkInFlight) {
  EngineHarness harness(Executor(4, 64), {.max_batched_tokens = 50});
  RequestId id;
  const auto client = harness.Submit(MakeRequest(Prompt(500), 5), &id);
  harness.Turns(3);
  EXPECT_GT(harness.engine.Stats().kv_blocks_used, 0);
  harness.engine.Cancel(id);
  harness.Turn();
  EXPECT_EQ(harness.engine.Stats().kv_blocks_used, 0);
  EXPECT_EQ(client->outcome().finish, FinishReason::kCancelled);
  harness.RunUntilIdle();
  EXPECT_TRUE(client->ids().empty());
}

TEST(EngineCancel, InMidDecodeWithRowsInFlight) {
  EngineHarness harness;
  const EngineRequest request = MakeRequest(Prompt(100), 50);
  RequestId id;
  const auto client = harness.Submit(request, &id);
  harness.Turns(10);
  const size_t seen = client->ids().size();
  EXPECT_GT(seen, 0u);
  harness.engine.Cancel(id);
  harness.RunUntilIdle();
  EXPECT_EQ(client->outcome().finish, FinishReason::kCancelled);
  EXPECT_EQ(client->ids().size(), seen);  // what was in flight is dropped
  ExpectPrefixOfAlone(client->outcome(), request);
  EXPECT_GT(harness.engine.Stats().rows_dropped, 0);
}

TEST(EngineCancel, AfterPreemption) {
  EngineHarness harness(Executor(2, 4));
  const EngineRequest first = MakeRequest(Prompt(60, 1), 100);
  RequestId id;
  const auto one = harness.Submit(first);
  const auto two = harness.Submit(MakeRequest(Prompt(60, 2), 100), &id);
  while (harness.engine.Stats().preemptions == 0) ASSERT_TRUE(harness.Turn());
  EXPECT_FALSE(two->outcome().finished());
  harness.engine.Cancel(id);
  harness.RunUntilIdle();
  EXPECT_EQ(two->outcome().finish, FinishReason::kCancelled);
  EXPECT_EQ(one->ids(), RunAlone(first)[0].ids);
}

TEST(EngineCancel, OneCandidateAloneForAReasonGiven) {
  EngineHarness harness;
  EngineRequest request = MakeRequest(Prompt(100), 30);
  request.candidates = 3;
  RequestId id;
  const auto client = harness.Submit(request, &id);
  harness.Turns(8);
  harness.engine.Cancel(id, 1, FinishReason::kStop);
  harness.engine.Cancel(id, 1, FinishReason::kCancelled);  // the first reason stays
  harness.engine.Cancel(id, 17);                           // there is no such candidate
  harness.RunUntilIdle();
  EXPECT_EQ(client->outcome(1).finish, FinishReason::kStop);
  EXPECT_LT(client->ids(1).size(), 30u);
  const auto alone = RunAlone(request);
  EXPECT_EQ(client->ids(0), alone[0].ids);
  EXPECT_EQ(client->ids(2), alone[2].ids);
}

TEST(EngineCancel, TheEndedAndTheUnknownAreIgnored) {
  EngineHarness harness;
  RequestId id;
  const auto client = harness.Submit(MakeRequest(Prompt(10), 2), &id);
  harness.RunUntilIdle();
  harness.engine.Cancel(id);
  harness.engine.Cancel(RequestId(12345));
  EXPECT_FALSE(harness.Turn());
  EXPECT_EQ(client->outcome().finish, FinishReason::kLength);
}

TEST(EngineDeadline, EndsARunningRequestWithWhatThereIs) {
  EngineHarness harness;
  EngineRequest request = MakeRequest(Prompt(10), 1000);
  request.deadline = harness.clock.Now() + milliseconds(20);
  const auto client = harness.Submit(request);
  harness.RunUntilIdle();
  EXPECT_EQ(client->outcome().finish, FinishReason::kDeadline);
  EXPECT_GT(client->ids().size(), 10u);
  EXPECT_LT(client->ids().size(), 25u);
}

TEST(EngineDeadline, TheQueuesDeadlineEndsOnlyWhatHasNotStarted) {
  EngineHarness harness(Executor(1, 64));
  EngineRequest request = MakeRequest(Prompt(10), 40);
  request.queue_deadline = harness.clock.Now() + milliseconds(10);
  const auto running = harness.Submit(request);
  const auto waiting = harness.Submit(request);
  harness.RunUntilIdle();
  EXPECT_EQ(running->outcome().finish, FinishReason::kLength);
  EXPECT_EQ(waiting->outcome().finish, FinishReason::kDeadline);
  EXPECT_TRUE(waiting->ids().empty());
  EXPECT_EQ(waiting->outcome().usage.time_to_first_token, Duration::zero());
  EXPECT_GE(waiting->outcome().usage.queue_time, milliseconds(10));
}

TEST(EngineSubmit, AFullQueueRefusesAtOnceAndLaterTakesAgain) {
  EngineHarness harness(Executor(1, 64), {.max_queue = 2});
  const auto submit = [&] {
    EngineRequest request = MakeRequest(Prompt(10), 3);
    request.id = harness.engine.NextRequestId();
    request.channel = std::make_shared<TokenChannel>([] {});
    return harness.engine.Submit(std::move(request));
  };
  EXPECT_TRUE(submit().ok());
  EXPECT_TRUE(submit().ok());
  EXPECT_EQ(submit().code(), absl::StatusCode::kResourceExhausted);
  harness.Turn();  // one has started
  EXPECT_TRUE(submit().ok());
  EXPECT_EQ(submit().code(), absl::StatusCode::kResourceExhausted);
  harness.RunUntilIdle();
  EXPECT_TRUE(submit().ok());
  harness.RunUntilIdle();
}

TEST(EngineSubmit, WhatCanNeverRunIsRefusedAtOnce) {
  EngineHarness harness(Executor(4, 2));
  EngineRequest request = MakeRequest(Prompt(200), 3);
  EXPECT_EQ(harness.engine.Submit(request).code(), absl::StatusCode::kInvalidArgument);
  request.channel = std::make_shared<TokenChannel>([] {});
  request.id = harness.engine.NextRequestId();
  EXPECT_THAT(std::string(harness.engine.Submit(request).message()), HasSubstr("KV blocks"));
  EXPECT_TRUE(harness.engine.Idle());
}

TEST(EngineSubmit, AnIdInUseIsRefused) {
  EngineHarness harness;
  EngineRequest request = MakeRequest(Prompt(10), 3);
  request.channel = std::make_shared<TokenChannel>([] {});
  request.id = harness.engine.NextRequestId();
  EXPECT_TRUE(harness.engine.Submit(request).ok());
  EXPECT_EQ(harness.engine.Submit(request).code(), absl::StatusCode::kAlreadyExists);
  harness.RunUntilIdle();
}

TEST(EngineDrain, FinishesWhatThereIsAndRefusesMore) {
  EngineHarness harness;
  const auto client = harness.Submit(MakeRequest(Prompt(10), 5));
  harness.engine.StartDraining();
  EngineRequest late = MakeRequest(Prompt(10), 5);
  late.channel = std::make_shared<TokenChannel>([] {});
  late.id = harness.engine.NextRequestId();
  EXPECT_EQ(harness.engine.Submit(late).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(harness.engine.Stats().draining);
  EXPECT_FALSE(harness.engine.Idle());
  harness.RunUntilIdle();
  EXPECT_EQ(client->outcome().finish, FinishReason::kLength);
}

void ExpectFailureEndsEverything(EngineHarness& harness) {
  const auto running = harness.Submit(MakeRequest(Prompt(10, 1), 50));
  EngineRequest several = MakeRequest(Prompt(10, 2), 50);
  several.candidates = 2;
  const auto waiting = harness.Submit(several);
  absl::StatusOr<bool> worked = true;
  for (int i = 0; i < 20 && worked.ok(); ++i) worked = harness.engine.RunOnce();
  ASSERT_FALSE(worked.ok());
  EXPECT_EQ(running->outcome().error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(running->ids().size(), 3u);
  for (const int32_t candidate : {0, 1}) {
    EXPECT_TRUE(waiting->outcome(candidate).finished());
    EXPECT_EQ(waiting->outcome(candidate).error.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_FALSE(harness.engine.Stats().healthy);
  EXPECT_TRUE(harness.engine.Idle());
  EXPECT_EQ(harness.engine.Stats().kv_blocks_used, 0);
  EXPECT_EQ(harness.engine.RunOnce().status(), worked.status());
  EngineRequest late = MakeRequest(Prompt(10), 5);
  late.channel = std::make_shared<TokenChannel>([] {});
  late.id = harness.engine.NextRequestId();
  EXPECT_EQ(harness.engine.Submit(late).code(), absl::StatusCode::kUnavailable);
}

TEST(EngineFailure, AFailedStepEndsEveryRequest) {
  FakeExecutorOptions options = Executor(1, 64);
  options.fail_await_of_step = 4;
  EngineHarness harness(options);
  ExpectFailureEndsEverything(harness);
}

TEST(EngineFailure, AStepThatCannotBeEnqueuedEndsEveryRequest) {
  FakeExecutorOptions options = Executor(1, 64);
  options.fail_enqueue_of_step = 5;  // the fourth is in flight and lost
  EngineHarness harness(options);
  ExpectFailureEndsEverything(harness);
}

TEST(EngineFailure, ALostFollowerEndsEveryRequest) {
  EngineHarness harness(Executor(1, 64), {}, /*group_size=*/2);
  harness.group.FailAfter(4);
  ExpectFailureEndsEverything(harness);
}

TEST(EngineGroup, FollowersGetEveryPlanAsEncoded) {
  EngineHarness harness(Executor(4, 64), {}, /*group_size=*/2);
  fakes::FakeExecutor follower(Executor(4, 64));
  const auto client = harness.Submit(MakeRequest(Prompt(100), 10));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.group.messages().size(), harness.executor.steps().size());
  std::vector<int32_t> ids;
  uint64_t digest = 0;
  for (const std::string& message : harness.group.messages()) {
    const auto step = plan::Decode(message);
    ASSERT_TRUE(step.ok()) << step.status();
    ASSERT_TRUE(follower.Enqueue(*step).ok());
    const auto result = follower.Await(step->step);
    ASSERT_TRUE(result.ok());
    ids.push_back(result->tokens.at(0).id);
    if (step->committed_step.value() == step->step.value() - 1) {
      EXPECT_EQ(step->committed_digest, digest);
    }
    digest = plan::DigestTokens(*result);
  }
  EXPECT_EQ(ids, client->ids());
}

TEST(EngineGroup, ALeaderAloneBroadcastsNothing) {
  EngineHarness harness;
  const auto client = harness.Submit(MakeRequest(Prompt(100), 10));
  harness.RunUntilIdle();
  EXPECT_TRUE(harness.group.messages().empty());
}

}  // namespace
}  // namespace qserve::worker::engine
