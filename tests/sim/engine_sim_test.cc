// One engine, random requests, random interference, no patience: everything that a schedule can do
// to a request is done to some, and each must still get the tokens that it gets alone.
// Deterministic per seed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "common/hashing.h"
#include "tests/fakes/engine_harness.h"

namespace qserve::worker::engine {
namespace {

using fakes::CandidateOutcome;
using fakes::Client;
using fakes::EngineHarness;
using fakes::FakeExecutorOptions;
using std::chrono::milliseconds;

constexpr int32_t kVocabulary = 200;
constexpr int32_t kStopIds = 4;  // a token in fifty ends a sequence that has stop ids

class Simulation {
 public:
  explicit Simulation(uint32_t seed) : random_(seed) {
    executor_options_.limits.slots = OneOf({1, 3, 8, 24});
    executor_options_.limits.blocks = OneOf({7, 9, 16, 40});
    executor_options_.vocabulary = kVocabulary;
    engine_options_.max_batched_tokens = OneOf({1, 7, 64, 150, 4096});
    engine_options_.pipeline_depth = OneOf({1, 2, 2});
    engine_options_.max_queue = OneOf({3, 20, 1000});
    engine_options_.prefix_caching = !Chance(10);
    // As followers would see it: a second run of the seed must broadcast the same bytes.
    harness_ = std::make_unique<EngineHarness>(executor_options_, engine_options_, 2);
  }

  void Run(int requests) {
    while (static_cast<int>(runs_.size()) < requests) {
      if (Chance(30)) SubmitOne();
      if (Chance(8)) CancelOne();
      if (Chance(5)) harness_->clock.Advance(milliseconds(Below(30)));
      harness_->Turn();
      if (::testing::Test::HasFailure()) return;
    }
    harness_->RunUntilIdle();
    for (const RunningRequest& run : runs_) Compare(run);
  }

  EngineStats stats() const { return harness_->engine.Stats(); }
  uint64_t broadcast_digest() const {
    uint64_t digest = 0;
    for (const std::string& message : harness_->group.messages()) {
      digest = HashSpan(std::span<const char>(message), digest);
    }
    return digest;
  }
  int finished() const { return finished_; }
  int interrupted() const { return interrupted_; }
  int refused() const { return refused_; }

 private:
  struct RunningRequest {
    EngineRequest request;
    RequestId id;
    std::unique_ptr<Client> client;
    std::vector<CandidateOutcome> alone;
  };

  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint32_t>(bound)); }
  bool Chance(int percent) { return Below(100) < percent; }
  int32_t OneOf(std::vector<int32_t> values) {
    return values[static_cast<size_t>(Below(static_cast<int>(values.size())))];
  }

  // Some prompts begin alike, some are alike.
  std::vector<int32_t> RandomPrompt() {
    std::vector<int32_t> prompt = fakes::Prompt(1 + Below(Chance(20) ? 400 : 150), Below(5));
    if (Chance(50)) prompt.push_back(Below(1000));
    if (Chance(15)) prompt.resize((prompt.size() + 63) / 64 * 64, 3);
    return prompt;
  }

  EngineRequest RandomRequest() {
    EngineRequest request = fakes::MakeRequest(RandomPrompt(), 1 + Below(Chance(20) ? 200 : 40));
    request.sampling.seed = static_cast<uint64_t>(Below(3));
    if (Chance(20)) request.sampling.repetition_penalty = 1.2f;
    if (Chance(50)) {
      for (int32_t i = 0; i < kStopIds; ++i) request.stop_ids.push_back(i);
      if (Chance(30)) {
        request.sampling.min_tokens = Below(20);
        request.sampling.banned_ids = request.stop_ids;
      }
    }
    if (Chance(25)) request.candidates = 2 + Below(3);
    request.priority = Chance(30) ? Below(3) - 1 : 0;
    request.cache_salt = static_cast<uint64_t>(Below(2));
    request.use_prefix_cache = !Chance(10);
    return request;
  }

  // A resumption of what another replica has begun; at least one candidate has something left to
  // do.
  void AddResume(EngineRequest& request, const std::vector<CandidateOutcome>& alone) {
    bool any_open = false;
    for (const CandidateOutcome& outcome : alone) {
      const size_t emitted = static_cast<size_t>(Below(static_cast<int>(outcome.ids.size()) + 1));
      const auto end = outcome.ids.begin() + static_cast<std::ptrdiff_t>(emitted);
      const bool complete = emitted == outcome.ids.size();
      request.resume.push_back(
          {.output_ids = {outcome.ids.begin(), end}, .finished = complete && Chance(50)});
      any_open = any_open || !request.resume.back().finished;
    }
    if (!any_open) request.resume.front().finished = false;
  }

  void SubmitOne() {
    RunningRequest run;
    run.request = RandomRequest();
    run.alone = fakes::RunAlone(run.request, kVocabulary);
    if (Chance(15)) AddResume(run.request, run.alone);
    const TimePoint now = harness_->clock.Now();
    if (Chance(10)) run.request.deadline = now + milliseconds(Below(300));
    if (Chance(10)) run.request.queue_deadline = now + milliseconds(Below(100));

    EngineRequest request = run.request;
    run.id = harness_->engine.NextRequestId();
    run.client = std::make_unique<Client>(request.candidates);
    request.id = run.id;
    request.channel = run.client->channel();
    request.arrival = now;
    const auto longest = static_cast<int32_t>(request.prompt.size()) + request.max_tokens - 1;
    const bool fits = (longest + 63) / 64 <= executor_options_.limits.blocks;
    const absl::Status status = harness_->engine.Submit(std::move(request));
    if (!status.ok()) {
      ++refused_;
      EXPECT_EQ(status.code(),
                fits ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInvalidArgument);
      return;
    }
    EXPECT_TRUE(fits);
    runs_.push_back(std::move(run));
  }

  void CancelOne() {
    if (runs_.empty()) return;
    // Mostly one of the latest: the others are over.
    const int from_end = Below(std::min(12, static_cast<int>(runs_.size())));
    const RunningRequest& run = runs_[runs_.size() - 1 - static_cast<size_t>(from_end)];
    harness_->engine.Cancel(run.id, Chance(50) ? -1 : Below(run.request.candidates));
  }

  void Compare(const RunningRequest& run) {
    for (size_t c = 0; c < run.alone.size(); ++c) {
      const CandidateOutcome& outcome = run.client->outcome(static_cast<int32_t>(c));
      std::vector<int32_t> ids;
      if (!run.request.resume.empty()) {
        if (run.request.resume[c].finished) {
          EXPECT_FALSE(outcome.finished());
          continue;
        }
        ids = run.request.resume[c].output_ids;
      }
      ids.insert(ids.end(), outcome.ids.begin(), outcome.ids.end());
      std::vector<int32_t> expected = run.alone[c].ids;
      ASSERT_TRUE(outcome.finished()) << "request " << run.id.value();
      ASSERT_TRUE(outcome.error.ok());
      if (outcome.finish == FinishReason::kStop || outcome.finish == FinishReason::kLength) {
        ++finished_;
        EXPECT_EQ(outcome.finish, run.alone[c].finish);
        EXPECT_EQ(outcome.matched_stop_id, run.alone[c].matched_stop_id);
      } else {
        ++interrupted_;
        ASSERT_LE(ids.size(), expected.size());
        expected.resize(ids.size());
      }
      ASSERT_EQ(ids, expected) << "request " << run.id.value() << " candidate " << c;
    }
  }

  std::mt19937 random_;
  FakeExecutorOptions executor_options_;
  EngineOptions engine_options_;
  std::unique_ptr<EngineHarness> harness_;
  std::vector<RunningRequest> runs_;
  int finished_ = 0;
  int interrupted_ = 0;
  int refused_ = 0;
};

TEST(EngineSimulation, EveryRequestGetsTheTokensThatItGetsAlone) {
  int64_t preemptions = 0, preemptions_in_prefill = 0, dropped = 0, cached = 0;
  int finished = 0, interrupted = 0, refused = 0;
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(seed);
    simulation.Run(150);
    if (HasFailure()) return;
    const EngineStats stats = simulation.stats();
    preemptions += stats.preemptions;
    preemptions_in_prefill += stats.preemptions_in_prefill;
    dropped += stats.rows_dropped;
    cached += stats.cached_prompt_tokens;
    finished += simulation.finished();
    interrupted += simulation.interrupted();
    refused += simulation.refused();
  }
  // The weather was bad enough.
  EXPECT_GT(preemptions - preemptions_in_prefill, 100);
  EXPECT_GT(preemptions_in_prefill, 20);
  EXPECT_GT(dropped, 100);
  EXPECT_GT(cached, 10'000);
  EXPECT_GT(finished, 2000);
  EXPECT_GT(interrupted, 200);
  EXPECT_GT(refused, 100);
  RecordProperty("preemptions", static_cast<int>(preemptions));
  RecordProperty("preemptions_in_prefill", static_cast<int>(preemptions_in_prefill));
  RecordProperty("finished", finished);
  RecordProperty("interrupted", interrupted);
}

TEST(EngineSimulation, ASeedMakesTheSamePlansAgain) {
  for (const uint32_t seed : {101u, 102u, 103u}) {
    Simulation first(seed), second(seed);
    first.Run(40);
    second.Run(40);
    EXPECT_EQ(first.broadcast_digest(), second.broadcast_digest()) << seed;
  }
}

}  // namespace
}  // namespace qserve::worker::engine
