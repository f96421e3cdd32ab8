// One step of a model: counted operations, what an observer sees, the head's formats, and an
// executor's manners.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/integration/counting_backend.h"
#include "tests/integration/model_driver.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/local_communicator.h"
#include "worker/comm/local_host_group.h"
#include "worker/exec/direct_runner.h"
#include "worker/exec/model_executor.h"

namespace qserve::tests {
namespace {

using kernels::Matrix;
using kernels::WeightFormat;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using worker::checkpoint::Checkpoint;
using worker::checkpoint::LoadQuantization;
using worker::exec::DirectRunner;
using worker::exec::ExecutorOptions;
using worker::exec::KvCache;
using worker::exec::KvCacheType;
using worker::exec::ModelExecutor;
using worker::exec::Rank;
using worker::model::LinearInput;
using worker::model::LmHeadType;

constexpr const char* kDemoModel = "deploy/demo-model";

std::unique_ptr<Checkpoint> OpenDemo() {
  auto checkpoint = Checkpoint::Open(kDemoModel);
  QSERVE_CHECK_MSG(checkpoint.ok(), checkpoint.status().ToString());
  return *std::move(checkpoint);
}

TEST(ModelStep, DecodesAndAChunkAreOneBatch) {
  const auto cpu = MakeCpu();
  CountingBackend backend(*cpu);
  worker::comm::LocalCommunicator alone(&backend);
  const auto checkpoint = OpenDemo();
  auto runner = DirectRunner::Create(
      *checkpoint, backend, alone,
      {.max_tokens = 128, .weights = {.quantization = LoadQuantization::kRtnGroup128}});
  ASSERT_TRUE(runner.ok()) << runner.status();
  const auto& config = checkpoint->config();
  const auto shard = worker::model::MakeShard(config, 0, 1);
  const auto formats = LayerKvFormats(config, KvCacheType::kInt4, LoadQuantization::kRtnGroup128);
  const auto pages = KvCache::Create(backend, KvCache::Shapes(config, *shard, formats), 33);
  ASSERT_TRUE(pages.ok()) << pages.status();

  // 32 sequences of one page each decode at position 9; another one has a chunk of 64.
  std::vector<int32_t> tokens(96, 5), rows, blocks(33);
  std::vector<kernels::SequenceSpan> sequences;
  for (int32_t i = 0; i < 33; ++i) {
    blocks[static_cast<size_t>(i)] = i;
    sequences.push_back({.first_row = i,
                         .row_count = i < 32 ? 1 : 64,
                         .first_position = i < 32 ? 9 : 0,
                         .block_table = std::span(blocks).subspan(static_cast<size_t>(i), 1)});
    if (i < 32) rows.push_back(i);
  }
  backend.Clear();
  const kernels::Status status = backend.Run(0, [&] {
    (*runner)->model().Forward({.token_ids = tokens, .sequences = sequences, .logit_rows = rows},
                               (*pages)->layers(), nullptr);
  });
  ASSERT_TRUE(status.ok()) << status.message();
  const worker::model::ModelWeights& weights = (*runner)->model().weights();
  EXPECT_EQ(backend.linears.size(), 4 * weights.layers.size() + 1);
  for (const auto& layer : weights.layers) {
    EXPECT_THAT(backend.linears[layer.qkv.get()], ElementsAre(96));
    EXPECT_THAT(backend.linears[layer.o.get()], ElementsAre(96));
    EXPECT_THAT(backend.linears[layer.feed_forward.gate_up.get()], ElementsAre(96));
    EXPECT_THAT(backend.linears[layer.feed_forward.down.get()], ElementsAre(96));
  }
  EXPECT_THAT(backend.linears[weights.lm_head.get()], ElementsAre(32));  // sampled rows only
  EXPECT_EQ(backend.attentions, config.layers);
  EXPECT_EQ(backend.ropes, config.layers);
  EXPECT_EQ(backend.norms, 2 * config.layers + 1);
  EXPECT_EQ(backend.embeds, 3);  // rows come from the file 32 at a time
}

// Keeps what passes, by layer.
class KeepingObserver final : public worker::model::ActivationObserver {
 public:
  void OnLinearInput(int64_t layer, LinearInput linear, Matrix<const float> x) override {
    EXPECT_EQ(x.cols, linear == LinearInput::kDown ? 768 : 256);
    inputs[{layer, linear}] += x.rows;
  }
  void OnRotated(int64_t layer, Matrix<const float> q, Matrix<const float> k) override {
    EXPECT_EQ(q.cols, 256);
    keys[layer].insert(keys[layer].end(), k.data, k.data + k.rows * k.cols);
  }
  void OnBlockOutput(int64_t layer, Matrix<const float> residual) override {
    outputs[layer].assign(residual.data, residual.data + residual.rows * residual.cols);
  }
  std::map<std::pair<int64_t, LinearInput>, int64_t> inputs;
  std::map<int64_t, std::vector<float>> keys, outputs;
};

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  QSERVE_CHECK(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

TEST(ModelStep, AnObserverSeesEveryLayerAndChangesNothing) {
  const auto backend = MakeCpu();
  worker::comm::LocalCommunicator alone(backend.get());
  const auto checkpoint = OpenDemo();
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 20; ++i) tokens.push_back(i * 31 % 4096);

  KeepingObserver whole, chunked;
  std::vector<float> logits[3];
  worker::model::ActivationObserver* const observers[] = {nullptr, &whole, &chunked};
  for (size_t i = 0; i < 3; ++i) {
    auto runner = DirectRunner::Create(*checkpoint, *backend, alone,
                                       {.max_tokens = 32,
                                        .kv_cache = KvCacheType::kFp32,
                                        .weights = {.quantization = LoadQuantization::kRtnGroup128},
                                        .observer = observers[i]});
    ASSERT_TRUE(runner.ok()) << runner.status();
    auto computed = (*runner)->Logits(tokens, i == 2 ? 6 : 0);
    ASSERT_TRUE(computed.ok()) << computed.status();
    logits[i] = *std::move(computed);
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(logits[0], logits[2]);
  const int64_t layers = checkpoint->config().layers;
  EXPECT_EQ(std::ssize(whole.inputs), 4 * layers);
  for (const auto& [place, rows] : whole.inputs) EXPECT_EQ(rows, 20);
  EXPECT_EQ(std::ssize(whole.outputs), layers);
  // Keys carry their rotation, whichever step they were computed in.
  EXPECT_EQ(whole.keys, chunked.keys);
  EXPECT_EQ(whole.keys[0].size(), 20u * 2 * 64);
}

TEST(ModelStep, EveryFormatOfTheHeadComesNearFullPrecision) {
  const auto backend = MakeCpu();
  worker::comm::LocalCommunicator alone(backend.get());
  const auto checkpoint = OpenDemo();
  const std::vector<int32_t> tokens = {0, 17, 300, 42, 7, 999, 5};
  std::vector<float> exact;
  const std::tuple<LmHeadType, WeightFormat, double> heads[] = {
      {LmHeadType::kAuto, WeightFormat::kFloat, 0},
      {LmHeadType::kFp16, WeightFormat::kHalfFixedOrder, 1e-3},
      {LmHeadType::kInt8, WeightFormat::kW8, 0.03},
      {LmHeadType::kInt4, WeightFormat::kW4Group128, 0.25},
  };
  for (const auto& [type, format, tolerance] : heads) {
    auto runner = DirectRunner::Create(*checkpoint, *backend, alone,
                                       {.max_tokens = 32, .weights = {.lm_head = type}});
    ASSERT_TRUE(runner.ok()) << runner.status();
    EXPECT_EQ((*runner)->model().weights().lm_head->format, format);
    const auto logits = (*runner)->Logits(tokens);
    ASSERT_TRUE(logits.ok()) << logits.status();
    if (exact.empty()) exact = *logits;
    EXPECT_LE(Distance(*logits, exact), tolerance) << static_cast<int>(format);
  }
}

class ExecutorManners : public ::testing::Test {
 protected:
  ExecutorManners() {
    ExecutorOptions options;
    options.model_dir = kDemoModel;
    options.device = "cpu";
    options.threads = 1;
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 64;
    options.max_model_len = 128;
    options.kv_cache_memory = int64_t{8} << 20;
    worker::comm::LocalHostGroup group;
    auto rank = Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr));
    QSERVE_CHECK_MSG(rank.ok(), rank.status().ToString());
    rank_ = *std::move(rank);
  }

  // Step `step` of a sequence of a prompt that grows by nobody's sampling.
  static plan::StepPlan Step(int64_t step) {
    plan::StepPlan plan;
    plan.step = plan::StepId(step);
    if (step == 1) {
      plan::SlotStart start;
      start.prompt_tokens = 100;
      start.tokens = 100;
      plan.starts = {start};
      plan.block_deltas = {{.slot = plan::SlotId(0),
                            .first_index = 0,
                            .blocks = {plan::BlockId(3), plan::BlockId(1)}}};
    }
    plan.rows = {{.slot = plan::SlotId(0),
                  .first_position = static_cast<int32_t>(step - 1),
                  .tokens = {7},
                  .sample = false}};
    return plan;
  }

  std::unique_ptr<Rank> rank_;
};

TEST_F(ExecutorManners, TimesTheStartAndSaysWhatItServes) {
  std::vector<std::string> names;
  for (const auto& phase : rank_->startup_phases()) names.push_back(phase.name);
  EXPECT_THAT(names, ElementsAre("equal configuration", "backend", "communicator", "weights",
                                 "kv cache", "trial step"));
  EXPECT_EQ(rank_->limits().slots, 4);
  EXPECT_EQ(rank_->limits().kv_bytes_per_token,
            2 * 6 * 2 * 64 * 2);  // fp16: served in full precision
  EXPECT_EQ(rank_->limits().blocks, (8 << 20) / (rank_->limits().kv_bytes_per_token * 64));
}

TEST_F(ExecutorManners, TwoStepsInFlightAndNoMore) {
  ModelExecutor executor(*rank_);
  EXPECT_TRUE(executor.Enqueue(Step(1)).ok());
  EXPECT_TRUE(executor.Enqueue(Step(2)).ok());
  EXPECT_EQ(executor.Enqueue(Step(3)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(executor.Await(plan::StepId(2)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(executor.Await(plan::StepId(1)).ok());
  EXPECT_TRUE(executor.Enqueue(Step(3)).ok());
  EXPECT_TRUE(executor.Await(plan::StepId(2)).ok());
  EXPECT_TRUE(executor.Await(plan::StepId(3)).ok());
}

TEST_F(ExecutorManners, AFailedStepIsFinalAndTold) {
  int told = 0;
  {
    ModelExecutor executor(*rank_, [&told] { ++told; });
    plan::StepPlan bad = Step(1);
    bad.block_deltas[0].blocks = {plan::BlockId(rank_->limits().blocks)};
    EXPECT_TRUE(executor.Enqueue(bad).ok());
    const absl::Status status = executor.Await(plan::StepId(1)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("block"));
    EXPECT_EQ(executor.Enqueue(Step(2)), status);
    EXPECT_EQ(executor.Await(plan::StepId(2)).status(), status);
  }
  EXPECT_EQ(told, 1);
}

TEST_F(ExecutorManners, StepsDoNotGoBack) {
  ModelExecutor executor(*rank_);
  EXPECT_TRUE(executor.Enqueue(Step(1)).ok());
  EXPECT_TRUE(executor.Await(plan::StepId(1)).ok());
  EXPECT_TRUE(executor.Enqueue(Step(1)).ok());
  EXPECT_EQ(executor.Await(plan::StepId(1)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RankRefuses, WhatCannotBeServed) {
  const auto status_of = [](const std::function<void(ExecutorOptions&)>& change) {
    ExecutorOptions options;
    options.model_dir = kDemoModel;
    options.device = "cpu";
    options.threads = 1;
    change(options);
    worker::comm::LocalHostGroup group;
    return Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr)).status();
  };
  EXPECT_EQ(status_of([](auto& o) { o.model_dir = "no/such/folder"; }).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(status_of([](auto& o) { o.max_model_len = 1025; }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](auto& o) { o.max_num_seqs = 0; }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](auto& o) { o.max_num_batched_tokens = 0; }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](auto& o) { o.cpu_isa = "quantum"; }).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status_of([](auto& o) {
              o.full_precision_type = kernels::FloatType::kBf16;
              o.quantize = worker::checkpoint::LoadQuantization::kRtnGroup128;
            }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](auto& o) {
              o.max_model_len = 1024;
              o.kv_cache_memory = 1 << 20;
            }).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status_of([](auto& o) { o.kv_cache_memory = 1000; }).code(),
            absl::StatusCode::kResourceExhausted);  // not a single block
}

}  // namespace
}  // namespace qserve::tests
