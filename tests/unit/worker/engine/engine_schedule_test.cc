// The tokens of a request are the same whatever else the engine does: the fake executor's tokens
// are functions of everything that was fed, so equality says that the same was fed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/engine_harness.h"

namespace qserve::worker::engine {
namespace {

using fakes::CandidateOutcome;
using fakes::Client;
using fakes::EngineHarness;
using fakes::FakeExecutorOptions;
using fakes::MakeRequest;
using fakes::Prompt;
using fakes::RunAlone;
using ::testing::ElementsAreArray;
using ::testing::SizeIs;

constexpr int64_t kUnlimited = 1 << 20;

FakeExecutorOptions Executor(int32_t slots, int32_t blocks, int64_t max_step_tokens = kUnlimited) {
  FakeExecutorOptions options;
  options.limits.slots = slots;
  options.limits.blocks = blocks;
  options.limits.max_step_tokens = max_step_tokens;
  return options;
}

// A request of each kind that the paths through the scheduler tell apart.
std::vector<EngineRequest> Mixture() {
  std::vector<EngineRequest> requests;
  requests.push_back(MakeRequest(Prompt(150, 1), 40));
  requests.push_back(MakeRequest(Prompt(1, 2), 170));
  requests.push_back(MakeRequest(Prompt(60, 10), 150));
  requests.push_back(MakeRequest(Prompt(128, 3), 5));
  requests.push_back(MakeRequest(Prompt(333, 4), 1));
  EngineRequest several = MakeRequest(Prompt(130, 5), 20);
  several.candidates = 3;
  requests.push_back(several);
  EngineRequest penalized = MakeRequest(Prompt(100, 6), 30);
  penalized.sampling.presence_penalty = 0.5f;
  requests.push_back(penalized);
  EngineRequest stops = MakeRequest(Prompt(70, 7), 100);
  for (int32_t id = 0; id < 60; ++id) stops.stop_ids.push_back(id);
  stops.sampling.min_tokens = 4;
  stops.sampling.banned_ids = stops.stop_ids;
  requests.push_back(stops);
  EngineRequest resumed = MakeRequest(Prompt(90, 8), 40);
  resumed.resume = {{.output_ids = Prompt(17, 9), .finished = false}};
  requests.push_back(resumed);
  requests.push_back(MakeRequest(Prompt(150, 1), 40));  // the first one again
  for (size_t i = 0; i < requests.size(); ++i) requests[i].sampling.seed = 100 + i % 8;
  return requests;
}

// Runs the mixture together and compares each request with itself alone.
void ExpectSameAsAlone(EngineHarness& harness) {
  std::vector<std::unique_ptr<Client>> clients;
  const std::vector<EngineRequest> requests = Mixture();
  for (const EngineRequest& request : requests) {
    clients.push_back(harness.Submit(request));
    harness.Turns(2);
  }
  harness.RunUntilIdle();
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::vector<CandidateOutcome> alone = RunAlone(requests[i]);
    for (size_t c = 0; c < alone.size(); ++c) {
      const CandidateOutcome& outcome = clients[i]->outcome(static_cast<int32_t>(c));
      EXPECT_THAT(outcome.ids, ElementsAreArray(alone[c].ids)) << "request " << i;
      EXPECT_EQ(outcome.finish, alone[c].finish) << "request " << i;
      EXPECT_EQ(outcome.matched_stop_id, alone[c].matched_stop_id) << "request " << i;
      EXPECT_EQ(outcome.usage.prompt_tokens, alone[c].usage.prompt_tokens) << "request " << i;
    }
  }
}

TEST(EngineSchedule, TheMixtureIsWorthComparing) {
  const std::vector<EngineRequest> requests = Mixture();
  EXPECT_THAT(RunAlone(requests[0])[0].ids, SizeIs(40));
  const CandidateOutcome stopped = RunAlone(requests[7])[0];
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_GE(stopped.ids.size(), 5u);  // min_tokens holds
  const auto several = RunAlone(requests[5]);
  EXPECT_NE(several[0].ids, several[1].ids);
}

class EngineBudget : public ::testing::TestWithParam<std::tuple<int64_t, int, bool>> {};

TEST_P(EngineBudget, CrowdsAndBudgetsChangeNothing) {
  const auto [budget, depth, caching] = GetParam();
  EngineHarness harness(
      Executor(8, 64),
      {.max_batched_tokens = budget, .prefix_caching = caching, .pipeline_depth = depth});
  ExpectSameAsAlone(harness);
  for (const fakes::FakeStep& step : harness.executor.steps()) EXPECT_LE(step.rows, budget);
}

INSTANTIATE_TEST_SUITE_P(Budgets, EngineBudget,
                         ::testing::Combine(::testing::Values(1, 7, 64, kUnlimited),
                                            ::testing::Values(1, 2), ::testing::Bool()));

TEST(EngineSchedule, PreemptionInDecodeAndInPrefillChangesNothing) {
  for (const int64_t budget : {7, 50, 200}) {
    EngineHarness harness(Executor(8, 6), {.max_batched_tokens = budget});
    ExpectSameAsAlone(harness);
    EXPECT_GT(harness.engine.Stats().preemptions, 0) << budget;
  }
}

TEST(EngineSchedule, ASequencePreemptedInMidDecodeGoesOnAsIfNothingHadHappened) {
  EngineHarness harness(Executor(2, 4));
  const EngineRequest first = MakeRequest(Prompt(60, 1), 100);
  const EngineRequest second = MakeRequest(Prompt(60, 2), 100);
  const auto one = harness.Submit(first), two = harness.Submit(second);
  harness.RunUntilIdle();
  const EngineStats stats = harness.engine.Stats();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_EQ(stats.preemptions_in_prefill, 0);
  EXPECT_EQ(one->ids(), RunAlone(first)[0].ids);
  EXPECT_EQ(two->ids(), RunAlone(second)[0].ids);
  EXPECT_EQ(stats.generated_tokens, 200);
}

TEST(EngineSchedule, ASequencePreemptedInMidPrefillStartsAgain) {
  // The first grows into the blocks that the second's prompt, fed in small chunks, is waiting for.
  EngineHarness harness(Executor(2, 8), {.max_batched_tokens = 3, .prefix_caching = false});
  const EngineRequest first = MakeRequest(Prompt(60, 1), 300);
  const EngineRequest second = MakeRequest(Prompt(380, 2), 10);
  const auto one = harness.Submit(first), two = harness.Submit(second);
  harness.RunUntilIdle();
  EXPECT_GT(harness.engine.Stats().preemptions_in_prefill, 0);
  EXPECT_EQ(one->ids(), RunAlone(first)[0].ids);
  EXPECT_EQ(two->ids(), RunAlone(second)[0].ids);
}

TEST(EngineSchedule, HigherPriorityTakesTheBlocksOfLower) {
  EngineHarness harness(Executor(4, 4));
  const EngineRequest low = MakeRequest(Prompt(150, 1), 60);
  const auto slow = harness.Submit(low);
  harness.Turns(4);
  EngineRequest high = MakeRequest(Prompt(150, 2), 60);
  high.priority = 1;
  const auto fast = harness.Submit(high);
  while (!fast->outcome().finished()) ASSERT_TRUE(harness.Turn());
  EXPECT_FALSE(slow->outcome().finished());
  EXPECT_EQ(harness.engine.Stats().preemptions, 1);
  harness.RunUntilIdle();
  EXPECT_EQ(fast->ids(), RunAlone(high)[0].ids);
  EXPECT_EQ(slow->ids(), RunAlone(low)[0].ids);
}

TEST(EngineSchedule, HigherPriorityTakesTheSlotOfLower) {
  EngineHarness harness(Executor(1, 64));
  const auto slow = harness.Submit(MakeRequest(Prompt(10, 1), 60));
  harness.Turns(4);
  EngineRequest high = MakeRequest(Prompt(10, 2), 5);
  high.priority = 1;
  const auto fast = harness.Submit(high);
  while (!fast->outcome().finished()) ASSERT_TRUE(harness.Turn());
  EXPECT_FALSE(slow->outcome().finished());
  harness.RunUntilIdle();
  EXPECT_EQ(slow->ids(), RunAlone(MakeRequest(Prompt(10, 1), 60))[0].ids);
}

TEST(EngineSchedule, TheQueueIsServedByPriorityThenArrival) {
  EngineHarness harness(Executor(1, 64));
  std::vector<std::unique_ptr<Client>> clients;
  const std::vector<int32_t> priorities = {0, 0, 2, 1, 2};
  for (size_t i = 0; i < priorities.size(); ++i) {
    EngineRequest request = MakeRequest(Prompt(10, static_cast<int32_t>(i)), 3);
    request.priority = priorities[i];
    clients.push_back(harness.Submit(request));
  }
  std::vector<size_t> order;
  std::vector<bool> seen(clients.size(), false);
  while (harness.Turn()) {
    for (size_t i = 0; i < clients.size(); ++i) {
      if (!seen[i] && clients[i]->outcome().finished()) order.push_back(i);
      seen[i] = clients[i]->outcome().finished();
    }
  }
  EXPECT_THAT(order, ::testing::ElementsAre(2, 4, 3, 0, 1));
}

TEST(EngineSchedule, ALongPromptIsNotStarvedByNewcomers) {
  EngineHarness harness(Executor(8, 24), {.max_batched_tokens = 64});
  std::vector<std::unique_ptr<Client>> newcomers;
  int32_t stream = 10;
  const auto more = [&] {
    newcomers.push_back(harness.Submit(MakeRequest(Prompt(100, stream++), 10)));
  };
  for (int i = 0; i < 8; ++i) more();
  harness.Turns(3);
  const auto longest = harness.Submit(MakeRequest(Prompt(1400, 1), 5));
  int turns = 0;
  while (!longest->outcome().finished()) {
    more();
    ASSERT_TRUE(harness.Turn());
    ASSERT_LT(++turns, 200);
  }
  EXPECT_FALSE(newcomers.back()->outcome().finished());
  harness.RunUntilIdle();
}

TEST(EngineSchedule, AResumedRequestContinuesAsTheFirstReplicaWouldHave) {
  EngineRequest request = MakeRequest(Prompt(100, 1), 50);
  request.candidates = 2;
  request.sampling.frequency_penalty = 0.1f;
  const std::vector<CandidateOutcome> whole = RunAlone(request);
  for (const size_t emitted : {1, 20, 49}) {
    EngineRequest rest = request;
    for (const CandidateOutcome& outcome : whole) {
      const auto end = outcome.ids.begin() + static_cast<std::ptrdiff_t>(emitted);
      rest.resume.push_back({.output_ids = {outcome.ids.begin(), end}, .finished = false});
    }
    EngineHarness harness(Executor(4, 64), {.max_batched_tokens = 33});
    const auto client = harness.Submit(rest);
    harness.RunUntilIdle();
    for (int32_t c = 0; c < 2; ++c) {
      std::vector<int32_t> ids = rest.resume[static_cast<size_t>(c)].output_ids;
      const std::vector<int32_t>& more = client->ids(c);
      ids.insert(ids.end(), more.begin(), more.end());
      EXPECT_EQ(ids, whole[static_cast<size_t>(c)].ids) << emitted;
      EXPECT_EQ(client->outcome(c).finish, FinishReason::kLength);
    }
  }
}

TEST(EngineSchedule, ResumedCandidatesThatAreOverEndAtOnceOrSayNothing) {
  EngineRequest request = MakeRequest(Prompt(10, 1), 3);
  request.candidates = 4;
  request.stop_ids = {99};
  request.resume = {{.output_ids = {5, 6}, .finished = true},
                    {.output_ids = {5, 6, 7}, .finished = false},
                    {.output_ids = {5, 99}, .finished = false},
                    {.output_ids = {5}, .finished = false}};
  EngineHarness harness(Executor(4, 64));
  const auto client = harness.Submit(request);
  harness.RunUntilIdle();
  EXPECT_FALSE(client->outcome(0).finished());
  EXPECT_EQ(client->outcome(1).finish, FinishReason::kLength);
  EXPECT_EQ(client->outcome(2).finish, FinishReason::kStop);
  EXPECT_EQ(client->outcome(2).matched_stop_id, 99);
  EXPECT_EQ(client->ids(2).size(), 0u);
  EXPECT_EQ(client->ids(3).size(), 2u);
}

}  // namespace
}  // namespace qserve::worker::engine
