// Promise 1 with nothing faked: the engine, its scheduler and the demo model in W4A8KV4. A
// request's tokens, log-probabilities and usage are the same to the bit alone and in a crowd,
// whatever the budget, the prefix cache, preemption, threads and instruction set.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/comm/local_host_group.h"
#include "worker/engine/engine.h"
#include "worker/engine/token_channel.h"
#include "worker/exec/model_executor.h"
#include "worker/exec/rank.h"

namespace qserve::worker {
namespace {

struct Setup {
  int threads = 1;
  std::string isa = "auto";
  int64_t budget = 2048;
  int kv_blocks = 200;
  bool prefix_caching = true;
};

// What a client can see of one candidate, without times.
struct Outcome {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::vector<plan::TokenLogprob> top;
  engine::FinishReason finish = engine::FinishReason::kNone;
  int32_t prompt_tokens = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};
using Outcomes = std::vector<Outcome>;  // of a request's candidates

// A replica of one rank without its gRPC edge, driven turn by turn.
class Replica {
 public:
  explicit Replica(const Setup& setup) {
    constexpr int64_t kDemoBlockBytes = 2 * 6 * 2 * 64 * (64 / 2 + 4);
    exec::ExecutorOptions options;
    options.model_dir = "deploy/demo-model";
    options.device = "cpu";
    options.threads = setup.threads;
    options.cpu_isa = setup.isa;
    options.max_model_len = 384;
    options.max_num_seqs = 16;
    options.max_num_batched_tokens = 2048;
    options.kv_cache_memory = setup.kv_blocks * kDemoBlockBytes;
    options.quantize = checkpoint::LoadQuantization::kRtnGroup128;
    auto rank = exec::Rank::Create(options, group_, exec::DefaultCommunicator({}, nullptr));
    EXPECT_TRUE(rank.ok()) << rank.status();
    rank_ = *std::move(rank);
    executor_ = std::make_unique<exec::ModelExecutor>(*rank_);
    engine_ = std::make_unique<engine::Engine>(
        engine::EngineOptions{.max_batched_tokens = setup.budget,
                              .prefix_caching = setup.prefix_caching},
        *executor_, group_, clock_);
  }

  size_t Submit(engine::EngineRequest request) {
    request.id = engine_->NextRequestId();
    request.arrival = clock_.Now();
    request.channel = std::make_shared<engine::TokenChannel>([] {});
    channels_.push_back(request.channel);
    outcomes_.emplace_back(static_cast<size_t>(request.candidates));
    const absl::Status status = engine_->Submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status;
    return channels_.size() - 1;
  }

  bool Turn() {
    const absl::StatusOr<bool> worked = engine_->RunOnce();
    EXPECT_TRUE(worked.ok()) << worked.status();
    return worked.ok() && *worked;
  }

  // Until nothing is left to do; every block is then free or cached.
  void Finish() {
    while (Turn()) {
    }
    EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
    EXPECT_TRUE(engine_->CheckInvariants().ok());
  }

  Outcomes Take(size_t request) {
    Outcomes& outcomes = outcomes_[request];
    for (const engine::TokenEvent& event : channels_[request]->TakeAll()) {
      Outcome& outcome = outcomes[static_cast<size_t>(event.candidate)];
      if (event.token) {
        outcome.ids.push_back(event.token->id);
        outcome.logprobs.push_back(event.token->logprob);
        outcome.top.insert(outcome.top.end(), event.token->top.begin(), event.token->top.end());
      }
      outcome.finish = event.finish;
      outcome.prompt_tokens = event.usage.prompt_tokens;
    }
    return outcomes;
  }

  engine::EngineStats Stats() const { return engine_->Stats(); }

 private:
  SteadyClock clock_;
  comm::LocalHostGroup group_;
  std::unique_ptr<exec::Rank> rank_;
  std::unique_ptr<exec::ModelExecutor> executor_;
  std::unique_ptr<engine::Engine> engine_;
  std::vector<std::shared_ptr<engine::TokenChannel>> channels_;
  std::vector<Outcomes> outcomes_;
};

// Prompts of several lengths, the later ones beginning with the same 130 tokens.
std::vector<engine::EngineRequest> Requests() {
  std::vector<engine::EngineRequest> requests;
  const int lengths[] = {5, 70, 131, 200, 193, 64};
  for (int i = 0; i < 6; ++i) {
    engine::EngineRequest request;
    for (int t = 0; t < lengths[i]; ++t) {
      const bool shared = lengths[i] > 130 && t < 130;
      request.prompt.push_back(4 + (t * 37 + (shared ? 0 : 101 * i)) % 4000);
    }
    request.max_tokens = 100;
    if (i == 0) request.stop_ids = {1, 3};
    request.sampling.logprobs = 5;
    request.sampling.seed = static_cast<uint64_t>(1000 + i);
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    if (i == 3) request.sampling.repetition_penalty = 1.2f;
    if (i == 5) {
      request.candidates = 2;
      request.sampling.top_p = 0.9f;
      request.sampling.top_k = 50;
      request.sampling.frequency_penalty = 0.5f;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

// Each request by itself, on a replica of its own, one thread, everything in one chunk.
const std::vector<Outcomes>& Alone() {
  static const std::vector<Outcomes>* const outcomes = [] {
    auto* all = new std::vector<Outcomes>;
    for (engine::EngineRequest& request : Requests()) {
      Replica replica({.prefix_caching = false});
      replica.Submit(std::move(request));
      replica.Finish();
      all->push_back(replica.Take(0));
    }
    return all;
  }();
  return *outcomes;
}

void ExpectAsAlone(Replica& replica, const std::vector<size_t>& submitted) {
  for (size_t i = 0; i < submitted.size(); ++i) {
    const size_t request = i % Alone().size();
    const Outcomes outcomes = replica.Take(submitted[i]);
    EXPECT_TRUE(outcomes == Alone()[request]) << "request " << request << " came out otherwise";
    for (const Outcome& outcome : outcomes) {
      EXPECT_GT(outcome.ids.size(), 0u);
      EXPECT_EQ(outcome.logprobs.size(), outcome.ids.size());
    }
  }
}

std::vector<size_t> SubmitAll(Replica& replica) {
  std::vector<size_t> submitted;
  for (engine::EngineRequest& request : Requests()) {
    submitted.push_back(replica.Submit(std::move(request)));
  }
  return submitted;
}

class EngineModelTest : public testing::TestWithParam<Setup> {};

TEST_P(EngineModelTest, ACrowdChangesNoBit) {
  Replica replica(GetParam());
  const std::vector<size_t> submitted = SubmitAll(replica);
  replica.Finish();
  ExpectAsAlone(replica, submitted);
}

INSTANTIATE_TEST_SUITE_P(Setups, EngineModelTest,
                         testing::Values(Setup{}, Setup{.budget = 1}, Setup{.budget = 7},
                                         Setup{.budget = 64},
                                         Setup{.budget = 64, .prefix_caching = false},
                                         Setup{.threads = 3},
                                         Setup{.threads = 2, .isa = "reference", .budget = 7}),
                         [](const testing::TestParamInfo<Setup>& setup) {
                           return "threads" + std::to_string(setup.param.threads) + "_" +
                                  setup.param.isa + "_budget" + std::to_string(setup.param.budget) +
                                  (setup.param.prefix_caching ? "" : "_uncached");
                         });

TEST(EngineModel, PrefixHitsChangeNoBit) {
  Replica replica({});
  std::vector<size_t> submitted = SubmitAll(replica);
  replica.Finish();
  const int64_t before = replica.Stats().cached_prompt_tokens;
  for (const size_t again : SubmitAll(replica)) submitted.push_back(again);
  replica.Finish();
  // Of 70, 131, 200, 193 and 64 tokens the whole blocks but the last token's own: 64, 128, 192,
  // 192, 0.
  EXPECT_GE(replica.Stats().cached_prompt_tokens - before, 64 + 128 + 192 + 192);
  ExpectAsAlone(replica, submitted);
}

TEST(EngineModel, PreemptionInDecodeChangesNoBit) {
  Replica replica({.kv_blocks = 7});
  const std::vector<size_t> submitted = SubmitAll(replica);
  replica.Finish();
  EXPECT_GT(replica.Stats().preemptions, 0);
  ExpectAsAlone(replica, submitted);
}

TEST(EngineModel, PreemptionInPrefillChangesNoBit) {
  Replica replica({.budget = 16, .kv_blocks = 7});
  std::vector<engine::EngineRequest> requests = Requests();
  std::vector<size_t> submitted(requests.size());
  // A long prompt of low importance is under way when more important ones need its blocks.
  requests[3].priority = -1;
  submitted[3] = replica.Submit(std::move(requests[3]));
  for (int turn = 0; turn < 6; ++turn) replica.Turn();
  for (const size_t i : {size_t{4}, size_t{2}, size_t{0}, size_t{1}, size_t{5}}) {
    submitted[i] = replica.Submit(std::move(requests[i]));
  }
  replica.Finish();
  EXPECT_GT(replica.Stats().preemptions_in_prefill, 0);
  ExpectAsAlone(replica, submitted);
}

}  // namespace
}  // namespace qserve::worker
