// Schedule-independence on the demo model, quantized at load to W4A8 with a KV4 cache: whatever the
// chunks, the company, the preemptions, prefix hits, threads and instruction sets, a request gives
// the same tokens and log-probabilities to the bit.
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/integration/model_driver.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/local_host_group.h"
#include "worker/exec/model_executor.h"

namespace qserve::tests {
namespace {

using worker::checkpoint::LoadQuantization;
using worker::exec::ExecutorOptions;
using worker::exec::ModelExecutor;
using worker::exec::Rank;

constexpr const char* kDemoModel = "deploy/demo-model";

ExecutorOptions Options(LoadQuantization quantization = LoadQuantization::kRtnGroup128) {
  ExecutorOptions options;
  options.model_dir = kDemoModel;
  options.device = "cpu";
  options.threads = 1;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 1024;
  options.max_model_len = 512;
  options.kv_cache_memory = int64_t{4} << 20;
  options.quantize = quantization;
  return options;
}

std::unique_ptr<Rank> MakeRank(const ExecutorOptions& options) {
  worker::comm::LocalHostGroup group;
  auto rank = Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr));
  QSERVE_CHECK_MSG(rank.ok(), rank.status().ToString());
  return *std::move(rank);
}

std::vector<int32_t> Tokens(int count, uint32_t seed) {
  std::vector<int32_t> tokens = {0};
  for (uint32_t i = 1; i < static_cast<uint32_t>(count); ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>(2 + (seed >> 8) % 4000));
  }
  return tokens;
}

// Every way of drawing, prompts of a token up to some beyond a chunk of attention (256).
std::vector<Request> Requests() {
  std::vector<Request> requests;
  requests.push_back({.prompt = Tokens(70, 1), .sampling = {.temperature = 0, .logprobs = 5}});
  requests.push_back(
      {.prompt = Tokens(1, 2), .sampling = {.temperature = 1, .seed = 7, .logprobs = 0}});
  requests.push_back({.prompt = Tokens(130, 3),
                      .sampling = {.temperature = 0.8f,
                                   .top_k = 40,
                                   .top_p = 0.9f,
                                   .min_p = 0.01f,
                                   .seed = 11,
                                   .logprobs = 3}});
  requests.push_back({.prompt = Tokens(64, 4),
                      .sampling = {.temperature = 1.3f,
                                   .repetition_penalty = 1.2f,
                                   .presence_penalty = 0.5f,
                                   .frequency_penalty = 0.3f,
                                   .seed = 13,
                                   .min_tokens = 4,
                                   .banned_ids = {1},
                                   .logit_bias = {{5, 2.0f}, {9, -3.0f}}}});
  requests.push_back({.prompt = Tokens(270, 5), .sampling = {.temperature = 0, .logprobs = 1}});
  requests.push_back({.prompt = Tokens(130, 3),
                      .sampling = {.temperature = 1, .seed = 11},
                      .max_tokens = 8,
                      .candidate = 1});
  return requests;
}

// What each request gives when it has the replica to itself and its prompt is one chunk.
std::vector<Drawn> Alone(Rank& rank) {
  std::vector<Drawn> all;
  for (const Request& request : Requests()) all.push_back(Draw(rank, {}, {request}).front());
  return all;
}

TEST(ModelSchedule, TokensDoNotDependOnChunksOrCompany) {
  for (const LoadQuantization scheme :
       {LoadQuantization::kRtnGroup128, LoadQuantization::kRtnPerChannel}) {
    const auto rank = MakeRank(Options(scheme));
    const std::vector<Drawn> alone = Alone(*rank);
    for (const Drawn& drawn : alone) EXPECT_EQ(drawn.size(), 8u);
    EXPECT_NE(alone[2], alone[5]);  // another candidate draws other tokens
    EXPECT_EQ(alone[0].front().top.size(), 5u);
    for (const int64_t budget : {int64_t{7}, int64_t{64}, int64_t{1024}}) {
      EXPECT_EQ(Draw(*rank, {.budget = budget}, Requests()), alone)
          << "crowd, chunks of " << budget;
    }
    EXPECT_EQ(Draw(*rank, {.budget = 64, .concurrency = 2}, Requests()), alone);
    EXPECT_EQ(Draw(*rank, {.budget = 64, .pipelined = true}, Requests()), alone);
    EXPECT_EQ(Draw(*rank, {.budget = 1, .concurrency = 1}, {Requests()[0]}).front(), alone[0]);
  }
}

TEST(ModelSchedule, PreemptionInPrefillAndInDecodeChangesNothing) {
  const auto rank = MakeRank(Options());
  const std::vector<Drawn> alone = Alone(*rank);
  ModelExecutor executor(*rank);
  Driver driver(executor, {.budget = 100, .preempt_before = {2, 9, 15, 21}});
  const auto drawn = driver.Run(Requests());
  ASSERT_TRUE(drawn.ok()) << drawn.status();
  EXPECT_EQ(*drawn, alone);
  EXPECT_GT(driver.preemptions_in_prefill(), 0);
  EXPECT_GT(driver.preemptions_in_decode(), 0);
  EXPECT_GT(driver.most_sequences(), 2);
}

TEST(ModelSchedule, PrefixHitGivesTheTokensOfAMiss) {
  const auto rank = MakeRank(Options());
  Request first = Requests()[2], second = Requests()[2];
  second.prompt.resize(128);  // shares two whole blocks, then goes on differently
  for (const int32_t token : {17, 4, 99}) second.prompt.push_back(token);
  const std::vector<Drawn> miss = {Draw(*rank, {}, {first}).front(),
                                   Draw(*rank, {}, {second}).front()};
  // One after the other would end the first before the second takes its blocks: the budget lets the
  // first one's prompt pass first.
  EXPECT_EQ(Draw(*rank, {.budget = 130, .shared_blocks = 2}, {first, second}), miss);
}

TEST(ModelSchedule, ThreadsAndInstructionSetsDoNotMatter) {
  const auto rank = MakeRank(Options());
  const std::vector<Request> requests = {Requests()[0], Requests()[1], Requests()[3]};
  const std::vector<Drawn> expected = Draw(*rank, {.budget = 200}, requests);
  for (const std::string& isa : kernels::SupportedCpuIsas()) {
    ExecutorOptions options = Options();
    options.cpu_isa = isa;
    options.threads = 3;
    const auto other = MakeRank(options);
    EXPECT_EQ(other->description().device.isa, isa);
    EXPECT_EQ(Draw(*other, {.budget = 64}, requests), expected) << isa;
    EXPECT_EQ(other->description().numerics_id, rank->description().numerics_id);
  }
}

TEST(ModelSchedule, OtherFormatsOfKeysValuesAndHeadKeepThePromise) {
  for (const auto kv : {worker::exec::KvCacheType::kInt8, worker::exec::KvCacheType::kFp16}) {
    for (const auto head : {worker::model::LmHeadType::kFp16, worker::model::LmHeadType::kInt4}) {
      ExecutorOptions options = Options();
      options.kv_cache_dtype = kv;
      options.lm_head_dtype = head;
      options.kv_cache_memory = int64_t{16} << 20;
      const auto rank = MakeRank(options);
      const std::vector<Drawn> whole = Draw(*rank, {}, Requests());
      EXPECT_EQ(Draw(*rank, {.budget = 33, .pipelined = true}, Requests()), whole);
      EXPECT_NE(rank->description().numerics_id, MakeRank(Options())->description().numerics_id);
    }
  }
}

TEST(ModelSchedule, FullPrecisionLinearsInBf16KeepThePromise) {
  ExecutorOptions options = Options(LoadQuantization::kNone);
  options.kv_cache_memory = int64_t{32} << 20;
  const auto in_fp32 = MakeRank(options);
  options.full_precision_type = kernels::FloatType::kBf16;
  const auto rank = MakeRank(options);
  EXPECT_EQ(rank->description().device.kernel_family, "cpu-bf16");
  EXPECT_NE(rank->description().numerics_id, in_fp32->description().numerics_id);
  EXPECT_LT(rank->description().weight_bytes, in_fp32->description().weight_bytes * 3 / 4);
  const std::vector<Drawn> whole = Draw(*rank, {}, Requests());
  EXPECT_EQ(Draw(*rank, {.budget = 33, .pipelined = true}, Requests()), whole);
  const std::vector<Request> requests = {Requests()[0], Requests()[1]};
  const std::vector<Drawn> expected = Draw(*rank, {}, requests);
  for (const std::string& isa : kernels::SupportedCpuIsas()) {
    options.cpu_isa = isa;
    options.threads = 2;
    const auto other = MakeRank(options);
    EXPECT_EQ(Draw(*other, {.budget = 64}, requests), expected) << isa;
    EXPECT_EQ(other->description().numerics_id, rank->description().numerics_id);
  }
}

}  // namespace
}  // namespace qserve::tests
