// Options, KV formats and sizes, numerics, agreements between ranks and the follower's loop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "kernels/device_factory.h"
#include "worker/comm/local_host_group.h"
#include "worker/comm/thread_host_group.h"
#include "worker/exec/agreement.h"
#include "worker/exec/executor_options.h"
#include "worker/exec/follower.h"
#include "worker/exec/kv_cache.h"
#include "worker/exec/numerics_id.h"

namespace qserve::worker::exec {
namespace {

using checkpoint::LoadQuantization;
using checkpoint::ModelConfig;
using kernels::KvFormat;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ExecutorOptions, ParsesWhatFlagsSayAndNamesTheRest) {
  EXPECT_EQ(*ParseKvCacheType("int8"), KvCacheType::kInt8);
  EXPECT_EQ(*ParseLmHeadType("int4"), model::LmHeadType::kInt4);
  EXPECT_EQ(*ParseQuantize("rtn-gchn"), LoadQuantization::kRtnPerChannel);
  const auto bad = ParseKvCacheType("int5");
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("auto, int4, int8, fp16, fp32"));
  EXPECT_FALSE(ParseLmHeadType("").ok());
  EXPECT_FALSE(ParseQuantize("rtn").ok());
}

TEST(ExecutorOptions, GroupHashSeesWhatMustBeEqualAndNothingElse) {
  ExecutorOptions a, b;
  b.rank = 1;
  b.device_ordinal = 3;
  b.threads = 7;
  EXPECT_EQ(GroupConfigHash(a), GroupConfigHash(b));
  b.kv_cache_dtype = KvCacheType::kFp16;
  EXPECT_NE(GroupConfigHash(a), GroupConfigHash(b));
}

ModelConfig ThreeLayers(checkpoint::Scheme scheme) {
  ModelConfig config;
  config.layers = 3;
  config.scheme = scheme;
  config.heads = 8;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 256;
  config.vocab_size = 100;
  return config;
}

TEST(KvCacheFormats, AutoIsWhatTheCheckpointSays) {
  const auto formats = [](const ModelConfig& config, LoadQuantization quantization) {
    return LayerKvFormats(config, KvCacheType::kAuto, quantization);
  };
  ModelConfig config = ThreeLayers(checkpoint::Scheme::kFloat);
  EXPECT_THAT(formats(config, LoadQuantization::kNone), Each(KvFormat::kF16));
  EXPECT_THAT(formats(config, LoadQuantization::kRtnGroup128), Each(KvFormat::kInt4));
  config = ThreeLayers(checkpoint::Scheme::kQoqGroup128);
  EXPECT_THAT(formats(config, LoadQuantization::kNone), Each(KvFormat::kInt4));
  config.kv_bits = 8;
  EXPECT_THAT(formats(config, LoadQuantization::kNone), Each(KvFormat::kInt8));
  config.layer_kv_bits = {16, 4, 8};
  EXPECT_THAT(formats(config, LoadQuantization::kNone),
              ElementsAre(KvFormat::kF16, KvFormat::kInt4, KvFormat::kInt8));
  EXPECT_THAT(LayerKvFormats(config, KvCacheType::kFp32, LoadQuantization::kNone),
              Each(KvFormat::kF32));
}

TEST(KvCache, TakesTheBytesThatTheFormatPromises) {
  const ModelConfig config = ThreeLayers(checkpoint::Scheme::kQoqGroup128);
  const auto shard = model::MakeShard(config, 1, 2);
  ASSERT_TRUE(shard.ok());
  const auto backend = kernels::CreateBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok());
  const std::vector<KvFormat> formats = {KvFormat::kInt4, KvFormat::kInt4, KvFormat::kF16};
  const auto cache = KvCache::Create(**backend, KvCache::Shapes(config, *shard, formats), 5);
  ASSERT_TRUE(cache.ok()) << cache.status();
  // One kv head a rank: 2 * (64 / 2 + 4) for int4, 2 * 64 * 2 for fp16.
  EXPECT_EQ((*cache)->bytes_per_token(), 72 + 72 + 256);
  EXPECT_EQ((*cache)->blocks(), 5);
  EXPECT_EQ((*cache)->layers().size(), 3u);
  EXPECT_EQ((*cache)->layers()[2].pages.page_bytes, 64 * 256);
}

TEST(KvCache, MemoryIsSharedByTheRanksOfAReplica) {
  const auto backend = kernels::CreateBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ(KvMemoryOfRank(1000, 4, **backend), 250);
  const int64_t whole = KvMemoryOfRank(0, 1, **backend);
  EXPECT_LE(whole, int64_t{4} << 30);
  EXPECT_LE(whole, (*backend)->info().memory_bytes / 4);
  EXPECT_EQ(KvMemoryOfRank(0, 2, **backend), whole / 2);
}

TEST(NumericsId, ChangesWithEverythingThatDecidesTokens) {
  const std::vector<KvFormat> kv = {KvFormat::kInt4, KvFormat::kInt4};
  const std::vector<KvFormat> other_kv = {KvFormat::kInt4, KvFormat::kInt8};
  const Numerics base = {.checkpoint_digest = 5, .kernel_family = "cpu", .kv_formats = kv};
  std::vector<Numerics> changed(6, base);
  changed[0].checkpoint_digest = 6;
  changed[1].tensor_parallel_size = 2;
  changed[2].kernel_family = "sm90";
  changed[3].lm_head = kernels::WeightFormat::kW8;
  changed[4].kv_formats = other_kv;
  changed[5].quantization = LoadQuantization::kRtnGroup128;
  EXPECT_EQ(NumericsId(base).size(), 16u);
  EXPECT_EQ(NumericsId(base), NumericsId(Numerics(base)));
  for (const Numerics& numerics : changed) EXPECT_NE(NumericsId(numerics), NumericsId(base));
}

void OnThreeRanks(const std::function<void(comm::HostGroup&)>& body) {
  comm::ThreadHostHub hub(3);
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      comm::ThreadHostGroup group(&hub, rank);
      body(group);
    });
  }
}

TEST(Agreement, EveryRankLearnsTheMinimum) {
  OnThreeRanks([](comm::HostGroup& group) {
    const auto smallest = AgreeOnMinimum(group, 100 - group.rank());
    ASSERT_TRUE(smallest.ok()) << smallest.status();
    EXPECT_EQ(*smallest, 98);
  });
  comm::LocalHostGroup alone;
  EXPECT_EQ(*AgreeOnMinimum(alone, -7), -7);
}

TEST(Agreement, ADifferenceIsRefusedOnEveryRank) {
  OnThreeRanks([](comm::HostGroup& group) {
    EXPECT_TRUE(RequireEqual(group, "weather", 3).ok());
    const absl::Status status = RequireEqual(group, "weather", group.rank() == 2 ? 4u : 3u);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("weather differs"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 2"));
  });
}

// Notes what it is asked for; fails at a given step.
class NotingExecutor final : public StepExecutor {
 public:
  const ExecutorLimits& limits() const override { return limits_; }
  absl::Status Enqueue(const plan::StepPlan& plan) override {
    if (in_flight == kMaxStepsInFlight) return absl::FailedPreconditionError("too deep");
    ++in_flight;
    enqueued.push_back(plan.step.value());
    return absl::OkStatus();
  }
  absl::StatusOr<plan::StepResult> Await(plan::StepId step) override {
    --in_flight;
    if (step.value() == failing) return absl::DataLossError("this step");
    return plan::StepResult{.step = step, .tokens = {}};
  }
  int in_flight = 0;
  int64_t failing = -1;
  std::vector<int64_t> enqueued;

 private:
  ExecutorLimits limits_;
};

// A group that has `messages` to receive and then is aborted.
class ScriptedGroup final : public comm::HostGroup {
 public:
  int rank() const override { return 1; }
  int size() const override { return 2; }
  absl::Status Broadcast(const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<std::string> ReceiveBroadcast() override {
    if (messages.empty()) return absl::CancelledError("aborted");
    std::string message = std::move(messages.front());
    messages.pop_front();
    return message;
  }
  absl::StatusOr<std::vector<std::string>> Gather(const std::string&) override {
    return std::vector<std::string>();
  }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort() override {}
  std::deque<std::string> messages;
};

std::string PlanOf(int64_t step, bool shutdown = false) {
  plan::StepPlan plan;
  plan.step = plan::StepId(step);
  plan.shutdown = shutdown;
  return plan::Encode(plan);
}

TEST(Follower, RunsPlansInOrderUntilShutdown) {
  ScriptedGroup group;
  for (int64_t step = 1; step <= 5; ++step) group.messages.push_back(PlanOf(step));
  group.messages.push_back(PlanOf(0, true));
  group.messages.push_back(PlanOf(6));  // never read
  NotingExecutor executor;
  EXPECT_TRUE(RunFollower(group, executor).ok());
  EXPECT_THAT(executor.enqueued, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_EQ(executor.in_flight, 0);
  EXPECT_EQ(group.messages.size(), 1u);
}

TEST(Follower, GivesTheFailedStepAsTheReason) {
  ScriptedGroup group;
  group.messages = {PlanOf(1), PlanOf(2)};
  NotingExecutor executor;
  executor.failing = 2;
  EXPECT_EQ(RunFollower(group, executor).code(), absl::StatusCode::kDataLoss);
}

TEST(Follower, LeavesAnAbortedGroupAndRefusesGarbage) {
  ScriptedGroup group;
  NotingExecutor executor;
  EXPECT_EQ(RunFollower(group, executor).code(), absl::StatusCode::kCancelled);
  group.messages = {"garbage"};
  EXPECT_EQ(RunFollower(group, executor).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qserve::worker::exec
