// An engine with a fake executor under simulated time, driven turn by turn in the test's thread,
// with every request's events collected and checked for their order.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "tests/fakes/fake_executor.h"
#include "tests/fakes/recording_host_group.h"
#include "worker/engine/engine.h"
#include "worker/engine/token_channel.h"

namespace qserve::fakes {

// What became of one candidate.
struct CandidateOutcome {
  std::vector<int32_t> ids;
  worker::engine::FinishReason finish = worker::engine::FinishReason::kNone;
  int32_t matched_stop_id = -1;
  absl::Status error;
  worker::engine::Usage usage;

  bool finished() const { return finish != worker::engine::FinishReason::kNone; }
};

// Reads a request's channel.
class Client {
 public:
  explicit Client(int32_t candidates) : outcomes_(static_cast<size_t>(candidates)) {}

  std::shared_ptr<worker::engine::TokenChannel> channel() { return channel_; }

  void Read() {
    for (const worker::engine::TokenEvent& event : channel_->TakeAll()) {
      CandidateOutcome& outcome = outcomes_.at(static_cast<size_t>(event.candidate));
      ASSERT_FALSE(outcome.finished()) << "an event after the last one";
      if (event.token) outcome.ids.push_back(event.token->id);
      outcome.finish = event.finish;
      outcome.matched_stop_id = event.matched_stop_id;
      outcome.error = event.error;
      outcome.usage = event.usage;
    }
  }
  const CandidateOutcome& outcome(int32_t candidate = 0) {
    Read();
    return outcomes_.at(static_cast<size_t>(candidate));
  }
  const std::vector<int32_t>& ids(int32_t candidate = 0) { return outcome(candidate).ids; }

 private:
  std::shared_ptr<worker::engine::TokenChannel> channel_ =
      std::make_shared<worker::engine::TokenChannel>([] {});
  std::vector<CandidateOutcome> outcomes_;
};

struct EngineHarness {
  explicit EngineHarness(FakeExecutorOptions executor_options = {},
                         worker::engine::EngineOptions engine_options = {}, int group_size = 1)
      : executor(executor_options),
        group(group_size),
        engine(engine_options, executor, group, clock) {}

  // Submits and returns the reader; `id`, if asked for, is the request's.
  std::unique_ptr<Client> Submit(worker::engine::EngineRequest request,
                                 worker::engine::RequestId* id = nullptr) {
    auto client = std::make_unique<Client>(request.candidates);
    request.id = engine.NextRequestId();
    request.channel = client->channel();
    if (request.arrival == TimePoint{}) request.arrival = clock.Now();
    if (id != nullptr) *id = request.id;
    const absl::Status status = engine.Submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status;
    return client;
  }

  // One turn, a millisecond, and a look at the books. False when there was nothing to do.
  bool Turn() {
    const absl::StatusOr<bool> worked = engine.RunOnce();
    EXPECT_TRUE(worked.ok()) << worked.status();
    clock.Advance(std::chrono::milliseconds(1));
    const absl::Status invariants = engine.CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
    return worked.ok() && invariants.ok() && *worked;
  }
  void Turns(int count) {
    for (int i = 0; i < count; ++i) Turn();
  }

  // Until nothing is left to do; every block must then be free or cached.
  void RunUntilIdle(int turns_max = 100'000) {
    int turns = 0;
    while (Turn()) ASSERT_LT(++turns, turns_max) << "the engine does not come to rest";
    EXPECT_TRUE(engine.Idle());
    EXPECT_EQ(engine.Stats().kv_blocks_used, 0);
    EXPECT_EQ(engine.Stats().running, 0);
    EXPECT_EQ(engine.Stats().waiting, 0);
    EXPECT_EQ(engine.Stats().queued_tokens, 0);
  }

  FakeClock clock;
  FakeExecutor executor;
  RecordingHostGroup group;
  worker::engine::Engine engine;
};

// A prompt of `length` tokens that differs from those of other streams from its first token on.
inline std::vector<int32_t> Prompt(int32_t length, int32_t stream = 0) {
  std::vector<int32_t> tokens;
  uint32_t state = 12345u + 977u * static_cast<uint32_t>(stream);
  for (int32_t i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>(state >> 8) % 50'000);
  }
  return tokens;
}

inline worker::engine::EngineRequest MakeRequest(std::vector<int32_t> prompt, int32_t max_tokens) {
  worker::engine::EngineRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// The outcomes of a request that has an engine of its own, with ample room: what any other schedule
// has to reproduce.
inline std::vector<CandidateOutcome> RunAlone(worker::engine::EngineRequest request,
                                              int32_t vocabulary = 1000) {
  FakeExecutorOptions options;
  options.limits.blocks = 512;
  options.vocabulary = vocabulary;
  EngineHarness harness(options, {.prefix_caching = false, .pipeline_depth = 1});
  const int32_t candidates = request.candidates;
  const auto client = harness.Submit(std::move(request));
  harness.RunUntilIdle();
  std::vector<CandidateOutcome> outcomes;
  for (int32_t i = 0; i < candidates; ++i) outcomes.push_back(client->outcome(i));
  return outcomes;
}

}  // namespace qserve::fakes
