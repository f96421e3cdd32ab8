// The batching is real: what each step computes is counted by the executor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/engine_harness.h"

namespace qserve::worker::engine {
namespace {

using fakes::Client;
using fakes::EngineHarness;
using fakes::FakeExecutorOptions;
using fakes::FakeStep;
using fakes::MakeRequest;
using fakes::Prompt;

FakeExecutorOptions LargeExecutor() {
  FakeExecutorOptions options;
  options.limits = {.slots = 64,
                    .blocks = 4096,
                    .max_step_tokens = 1 << 20,
                    .max_model_len = 1 << 17,
                    .kv_bytes_per_token = 1};
  return options;
}

TEST(EngineBatching, DecodesAndAChunkShareOneStep) {
  EngineHarness harness(LargeExecutor(), {.max_batched_tokens = 96});
  std::vector<std::unique_ptr<Client>> clients;
  for (int32_t i = 0; i < 32; ++i) {
    clients.push_back(harness.Submit(MakeRequest(Prompt(3, i), 50)));
  }
  harness.Turns(5);
  const auto prompt = harness.Submit(MakeRequest(Prompt(300, 100), 2));
  harness.Turns(2);
  const FakeStep& step = harness.executor.steps().back();
  EXPECT_EQ(step.rows, 96);
  EXPECT_EQ(step.decode_rows, 32);
  EXPECT_EQ(step.samples, 32);
  harness.RunUntilIdle();
}

TEST(EngineBatching, APrefixHitSavesExactlyItsRows) {
  constexpr int32_t kPrefix = 64 * 1024;
  EngineHarness harness(LargeExecutor(), {.max_batched_tokens = 8192});
  std::vector<int32_t> prompt = Prompt(kPrefix);
  prompt.push_back(1);
  const auto first = harness.Submit(MakeRequest(prompt, 1));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.executor.total_rows(), kPrefix + 1);
  EXPECT_EQ(first->outcome().usage.cached_tokens, 0);

  prompt.back() = 2;
  const auto second = harness.Submit(MakeRequest(prompt, 1));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.executor.total_rows(), kPrefix + 1 + 1);
  EXPECT_EQ(second->outcome().usage.cached_tokens, kPrefix);
  EXPECT_EQ(harness.engine.Stats().prompt_tokens, 2 * (kPrefix + 1));
  EXPECT_EQ(harness.engine.Stats().cached_prompt_tokens, kPrefix);
  EXPECT_NE(first->ids(), second->ids());
}

TEST(EngineBatching, SaltsAndOptOutsKeepRequestsApart) {
  EngineHarness harness(LargeExecutor());
  const auto rows_of = [&](EngineRequest request) {
    const int64_t before = harness.executor.total_rows();
    const auto client = harness.Submit(std::move(request));
    harness.RunUntilIdle();
    return harness.executor.total_rows() - before;
  };
  EngineRequest request = MakeRequest(Prompt(640), 1);
  EXPECT_EQ(rows_of(request), 640);
  EXPECT_EQ(rows_of(request), 64);
  request.cache_salt = 1;
  EXPECT_EQ(rows_of(request), 640);
  EXPECT_EQ(rows_of(request), 64);
  request.use_prefix_cache = false;
  EXPECT_EQ(rows_of(request), 640);
}

TEST(EngineBatching, OutputIsFoundAgainAsAPrefix) {
  // The second turn of a conversation begins with the first turn's prompt and answer.
  EngineHarness harness(LargeExecutor());
  std::vector<int32_t> prompt = Prompt(100);
  const auto first = harness.Submit(MakeRequest(prompt, 100));
  harness.RunUntilIdle();
  const std::vector<int32_t>& answer = first->ids();
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  const auto second = harness.Submit(MakeRequest(prompt, 1));
  harness.RunUntilIdle();
  EXPECT_EQ(second->outcome().usage.cached_tokens, 192);  // of 200; the last one was never fed
}

TEST(EngineBatching, CandidatesShareThePrompt) {
  EngineHarness harness(LargeExecutor());
  EngineRequest request = MakeRequest(Prompt(1000), 1);
  request.candidates = 8;
  const auto client = harness.Submit(request);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.executor.total_rows(), 1000 + 7 * (1000 - 960));
}

TEST(EngineBatching, StepsAreEnqueuedBeforeTheLastOneIsRead) {
  EngineHarness harness(LargeExecutor());
  const auto client = harness.Submit(MakeRequest(Prompt(10), 20));
  harness.RunUntilIdle();
  int64_t from_last_step = 0;
  for (const FakeStep& step : harness.executor.steps()) from_last_step += step.from_last_step;
  EXPECT_EQ(from_last_step, 19);
  EXPECT_EQ(harness.executor.total_rows(), 10 + 19);

  EngineHarness waiting(LargeExecutor(), {.pipeline_depth = 1});
  const auto same = waiting.Submit(MakeRequest(Prompt(10), 20));
  waiting.RunUntilIdle();
  for (const FakeStep& step : waiting.executor.steps()) EXPECT_EQ(step.from_last_step, 0);
  EXPECT_EQ(client->ids(), same->ids());
}

TEST(EngineBatching, UsageTellsTimes) {
  EngineHarness harness(LargeExecutor(), {.max_batched_tokens = 10});
  const auto first = harness.Submit(MakeRequest(Prompt(100, 1), 3));
  const auto second = harness.Submit(MakeRequest(Prompt(5, 2), 3));
  harness.RunUntilIdle();
  EXPECT_EQ(first->outcome().usage.prompt_tokens, 100);
  EXPECT_EQ(first->outcome().usage.queue_time, Duration::zero());
  EXPECT_EQ(first->outcome().usage.time_to_first_token, std::chrono::milliseconds(10));
  // Behind ten steps of the first prompt.
  EXPECT_EQ(second->outcome().usage.queue_time, std::chrono::milliseconds(10));
  EXPECT_GT(second->outcome().usage.time_to_first_token, std::chrono::milliseconds(10));
}

TEST(EngineBatching, StatsCountBlocksAndTokens) {
  EngineHarness harness(LargeExecutor(), {.max_batched_tokens = 100});
  const auto one = harness.Submit(MakeRequest(Prompt(150, 1), 10));
  const auto two = harness.Submit(MakeRequest(Prompt(500, 2), 10));
  EXPECT_EQ(harness.engine.Stats().waiting, 2);
  harness.Turns(1);
  EngineStats stats = harness.engine.Stats();
  EXPECT_EQ(stats.running, 1);
  EXPECT_EQ(stats.waiting, 1);
  EXPECT_EQ(stats.queued_tokens, 50 + 500);
  EXPECT_EQ(stats.kv_blocks_used, 2);
  EXPECT_EQ(stats.kv_blocks_total, 4096);
  harness.RunUntilIdle();
  stats = harness.engine.Stats();
  EXPECT_EQ(stats.generated_tokens, 20);
  EXPECT_EQ(stats.prompt_tokens, 650);
  EXPECT_EQ(stats.requests_finished, 2);
  EXPECT_EQ(stats.kv_blocks_cached, (150 + 9) / 64 + (500 + 9) / 64);
  EXPECT_GT(stats.steps, 10);
}

}  // namespace
}  // namespace qserve::worker::engine
