// Whole models on the emulated GPU, with the kernels that GPUs run: near the CPU's logits, and the
// same tokens to the bit whatever the schedule, with recorded steps and without, on one rank or
// (per degree) on two that go through the host.
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"
#include "tests/integration/model_driver.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/host_staged_communicator.h"
#include "worker/comm/local_communicator.h"
#include "worker/comm/local_host_group.h"
#include "worker/comm/thread_communicator.h"
#include "worker/comm/thread_host_group.h"
#include "worker/exec/direct_runner.h"
#include "worker/exec/follower.h"
#include "worker/exec/model_executor.h"

namespace qserve::tests {
namespace {

using kernels::cuda::CudaBackend;
using kernels::cuda::EmulatedRuntime;
using ::testing::Contains;
using ::testing::HasSubstr;
using worker::checkpoint::Checkpoint;
using worker::checkpoint::Dtype;
using worker::checkpoint::LoadQuantization;
using worker::exec::DirectRunner;
using worker::exec::ExecutorOptions;
using worker::exec::KvCacheType;
using worker::exec::ModelExecutor;
using worker::exec::Rank;

constexpr int32_t kVocabulary = 200;
constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 200, "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0, "max_position_embeddings": 512, "hidden_act": "silu",
  "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 1})";

// A GPU of its own for whoever asks; *runtime is the last one's.
worker::exec::BackendFactory Emulated(EmulatedRuntime** runtime = nullptr, uint64_t seed = 0) {
  return [=](const kernels::DeviceOptions& options)
             -> kernels::StatusOr<std::unique_ptr<kernels::Backend>> {
    auto made = std::make_unique<EmulatedRuntime>(
        kernels::cuda::EmulatedDevice{.memory_bytes = int64_t{64} << 20, .order_seed = seed});
    if (runtime != nullptr) *runtime = made.get();
    kernels::cuda::CudaBackendOptions chosen;
    chosen.activation_type = options.model_type == kernels::FloatType::kBf16
                                 ? kernels::FloatType::kBf16
                                 : kernels::FloatType::kF16;
    chosen.memory.block_bytes = 0;
    chosen.memory.headroom_bytes = int64_t{1} << 20;
    auto backend = CudaBackend::Create(std::move(made), chosen);
    if (!backend.ok()) return backend.status();
    return std::unique_ptr<kernels::Backend>(*std::move(backend));
  };
}

class CudaModel : public ::testing::Test {
 protected:
  std::string Write(Dtype dtype) {
    const std::string path = folder_.Sub("model" + std::to_string(models_++));
    const absl::Status written = fakes::WriteRandomModel(path, kConfig, {.dtype = dtype});
    QSERVE_CHECK_MSG(written.ok(), written.ToString());
    return path;
  }

  static ExecutorOptions Options(const std::string& path) {
    ExecutorOptions options;
    options.model_dir = path;
    options.threads = 1;
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 48;
    options.max_model_len = 320;
    options.kv_cache_memory = int64_t{1} << 20;
    options.quantize = LoadQuantization::kRtnGroup128;
    return options;
  }

  TemporaryFolder folder_;
  int models_ = 0;
};

std::vector<int32_t> Tokens(int count, uint32_t seed) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>(2 + (seed >> 8) % (kVocabulary - 2)));
  }
  return tokens;
}

std::vector<Request> Requests() {
  std::vector<Request> requests;
  requests.push_back(
      {.prompt = Tokens(5, 1), .sampling = {.temperature = 0, .logprobs = 2}, .max_tokens = 5});
  requests.push_back({.prompt = Tokens(69, 2),
                      .sampling = {.temperature = 1, .top_p = 0.9f, .seed = 7, .logprobs = 0},
                      .max_tokens = 4});
  requests.push_back({.prompt = Tokens(30, 3),
                      .sampling = {.temperature = 0.8f, .presence_penalty = 0.5f, .seed = 9},
                      .max_tokens = 5});
  return requests;
}

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  QSERVE_CHECK(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

struct LogitsCase {
  const char* name;
  Dtype dtype;
  LoadQuantization scheme;
  KvCacheType kv_cache;
  double tolerance;  // of the distance to the CPU's, relative to the logits' length
};

std::vector<float> LogitsOn(kernels::Backend& backend, const std::string& path, int64_t chunk,
                            const LogitsCase& of) {
  worker::comm::LocalCommunicator alone(&backend);
  const auto checkpoint = Checkpoint::Open(path);
  QSERVE_CHECK_MSG(checkpoint.ok(), checkpoint.status().ToString());
  auto runner = DirectRunner::Create(
      **checkpoint, backend, alone,
      {.max_tokens = 96, .kv_cache = of.kv_cache, .weights = {.quantization = of.scheme}});
  QSERVE_CHECK_MSG(runner.ok(), runner.status().ToString());
  auto logits = (*runner)->Logits(Tokens(80, 5), chunk);
  QSERVE_CHECK_MSG(logits.ok(), logits.status().ToString());
  return *std::move(logits);
}

// Narrower activations move some values across the edge to another int8 or 4-bit code: that, and
// not the arithmetic, is most of the distance.
TEST_F(CudaModel, LogitsAreNearTheCpusAndTheSameForAllChunks) {
  const LogitsCase cases[] = {
      {"full precision", Dtype::kF16, LoadQuantization::kNone, KvCacheType::kFp16, 0.01},
      {"fp16, fp16 kv", Dtype::kF16, LoadQuantization::kRtnGroup128, KvCacheType::kFp16, 0.03},
      {"fp16, int4 kv", Dtype::kF16, LoadQuantization::kRtnGroup128, KvCacheType::kInt4, 0.08},
      {"bf16, int4 kv", Dtype::kBf16, LoadQuantization::kRtnPerChannel, KvCacheType::kInt4, 0.12},
  };
  for (const LogitsCase& of : cases) {
    const std::string path = Write(of.dtype);
    const auto cpu = MakeCpu();
    const std::vector<float> expected = LogitsOn(*cpu, path, 0, of);
    const auto type =
        of.dtype == Dtype::kBf16 ? kernels::FloatType::kBf16 : kernels::FloatType::kF16;
    std::vector<float> whole;
    for (const int64_t chunk : {0, 17}) {
      const auto gpu = Emulated(nullptr, static_cast<uint64_t>(chunk))({.model_type = type});
      ASSERT_TRUE(gpu.ok());
      const std::vector<float> logits = LogitsOn(**gpu, path, chunk, of);
      EXPECT_LT(Distance(logits, expected), of.tolerance) << of.name;
      if (chunk == 0) whole = logits;
      EXPECT_EQ(logits, whole) << of.name << ", chunks of " << chunk;
    }
    RecordProperty(of.name, std::to_string(Distance(whole, expected)));
  }
}

TEST_F(CudaModel, TokensDependNeitherOnTheScheduleNorOnRecordings) {
  ExecutorOptions options = Options(Write(Dtype::kBf16));
  std::vector<Drawn> alone;
  for (const bool record : {true, false}) {
    options.record_steps = record;
    worker::comm::LocalHostGroup group;
    EmulatedRuntime* runtime = nullptr;
    auto rank = Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr), {},
                             Emulated(&runtime, record ? 0 : 3));
    ASSERT_TRUE(rank.ok()) << rank.status();
    EXPECT_EQ((*rank)->recorded_rows().size(), record ? 3u : 0u);  // 1, 2, 4
    EXPECT_EQ(runtime->graphs(), record ? 3 : 0);
    if (record) {
      for (const Request& request : Requests()) {
        alone.push_back(Draw(**rank, {}, {request}).front());
      }
    }
    // Once serving, nothing is allocated: prefill in parts, mixed steps, decoding,
    // log-probabilities and penalties.
    const int64_t allocations = runtime->allocations();
    EXPECT_EQ(Draw(**rank, {.budget = 9}, Requests()), alone);
    EXPECT_EQ(Draw(**rank, {.pipelined = true}, Requests()), alone);
    EXPECT_EQ(runtime->allocations(), allocations);
    EXPECT_EQ(runtime->graph_launches() > 0, record);
    EXPECT_TRUE(runtime->misuses().empty()) << runtime->misuses().front();
    std::vector<std::string> purposes;
    for (const kernels::MemoryUse& use : (*rank)->description().memory) {
      purposes.push_back(use.purpose);
    }
    for (const char* purpose : {"weights", "activations", "workspace", "kv cache", "headroom"}) {
      EXPECT_THAT(purposes, Contains(purpose));
    }
  }
}

// How often the device had been waited for when the group's collectives were aborted.
class NotingCommunicator final : public worker::comm::Communicator {
 public:
  NotingCommunicator(kernels::Backend* backend, EmulatedRuntime* const* runtime,
                     std::atomic<int64_t>* waits_at_abort)
      : inner_(backend), runtime_(runtime), waits_at_abort_(waits_at_abort) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override {
    inner_.AllReduceSum(partial, sum);
  }
  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override {
    inner_.GatherColumns(local, out);
  }
  void BroadcastIds(int32_t* ids, int64_t count) override { inner_.BroadcastIds(ids, count); }
  void Abort() override {
    int64_t none = -1;
    waits_at_abort_->compare_exchange_strong(none, (*runtime_)->waits());
  }

 private:
  worker::comm::LocalCommunicator inner_;
  EmulatedRuntime* const* runtime_;
  std::atomic<int64_t>* waits_at_abort_;
};

TEST_F(CudaModel, AFailureAbortsBeforeTheDeviceIsWaitedFor) {
  const ExecutorOptions options = Options(Write(Dtype::kBf16));
  worker::comm::LocalHostGroup group;
  EmulatedRuntime* runtime = nullptr;
  std::atomic<int64_t> waits_at_abort = -1;
  const auto communicator = [&](kernels::Backend& backend)
      -> absl::StatusOr<std::unique_ptr<worker::comm::Communicator>> {
    return std::make_unique<NotingCommunicator>(&backend, &runtime, &waits_at_abort);
  };
  auto rank = Rank::Create(options, group, communicator, {}, Emulated(&runtime));
  ASSERT_TRUE(rank.ok()) << rank.status();
  const auto plan_of = [](int64_t step) {
    plan::StepPlan plan;
    plan.step = plan::StepId(step);
    return plan;
  };
  runtime->FailWaits(700);
  const int64_t before = runtime->waits();
  {
    ModelExecutor executor(**rank);
    ASSERT_TRUE(executor.Enqueue(plan_of(1)).ok());
    ASSERT_TRUE(executor.Enqueue(plan_of(2)).ok());
    EXPECT_FALSE(executor.Await(plan::StepId(1)).ok());
  }
  EXPECT_EQ(waits_at_abort, before + 1) << "for the step that failed, and for no other";
  runtime->FailWaits(0);
}

TEST_F(CudaModel, TheKvCacheIsWhatTheLargestStepsLeave) {
  ExecutorOptions options = Options(Write(Dtype::kBf16));
  options.kv_cache_memory = 0;
  options.max_model_len = 0;
  options.record_steps = false;
  worker::comm::LocalHostGroup group;
  EmulatedRuntime* runtime = nullptr;
  auto rank = Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr), {},
                           Emulated(&runtime));
  ASSERT_TRUE(rank.ok()) << rank.status();
  EXPECT_EQ((*rank)->limits().max_model_len, 512);
  int64_t free = 0, total = 0;
  runtime->MemoryInfo(&free, &total);
  EXPECT_GT(free, int64_t{1} << 20) << "the headroom is left";
  EXPECT_LT(free, (int64_t{1} << 20) + total / 15);

  options.kv_cache_memory = int64_t{63} << 20;
  rank =
      Rank::Create(options, group, worker::exec::DefaultCommunicator({}, nullptr), {}, Emulated());
  EXPECT_EQ(rank.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(rank.status().message()), HasSubstr("would fit"));
  EXPECT_THAT(std::string(rank.status().message()), HasSubstr("weights"));
  EXPECT_THAT(std::string(rank.status().message()), HasSubstr("--tensor-parallel-size 2 a rank"));
}

// Two ranks on emulated GPUs, by way of the host; what rank 0 draws.
std::vector<Drawn> DrawOnTwo(ExecutorOptions options, const Schedule& schedule) {
  options.tensor_parallel_size = 2;
  worker::comm::ThreadHub hub(2);
  worker::comm::ThreadHostHub host_hub(2);
  std::vector<Drawn> outcome;
  OnRanks(2, [&](int index) {
    worker::comm::ThreadHostGroup group(&host_hub, index);
    ExecutorOptions own = options;
    own.rank = index;
    const auto communicator = [&](kernels::Backend& backend)
        -> absl::StatusOr<std::unique_ptr<worker::comm::Communicator>> {
      return std::make_unique<worker::comm::HostStagedCommunicator>(
          &backend, std::make_unique<worker::comm::ThreadCommunicator>(&hub, index, &backend));
    };
    auto rank = Rank::Create(own, group, communicator, {}, Emulated());
    QSERVE_CHECK_MSG(rank.ok(), rank.status().ToString());
    EXPECT_TRUE((*rank)->recorded_rows().empty()) << "collectives that wait are not recorded";
    ModelExecutor executor(**rank, [&group] { group.Abort(); });
    if (index != 0) {
      const absl::Status status = worker::exec::RunFollower(group, executor);
      EXPECT_TRUE(status.ok()) << status;
      return;
    }
    BroadcastingExecutor leader(executor, group);
    Driver driver(leader, schedule);
    auto drawn = driver.Run(Requests());
    QSERVE_CHECK_MSG(drawn.ok(), drawn.status().ToString());
    outcome = *std::move(drawn);
    plan::StepPlan bye;
    bye.shutdown = true;
    EXPECT_TRUE(group.Broadcast(plan::Encode(bye)).ok());
  });
  return outcome;
}

TEST_F(CudaModel, TwoRanksByWayOfTheHostAgreeWithThemselves) {
  const ExecutorOptions options = Options(Write(Dtype::kBf16));
  const std::vector<Drawn> whole = DrawOnTwo(options, {});
  EXPECT_EQ(whole.size(), 3u);
  EXPECT_EQ(DrawOnTwo(options, {.budget = 11, .pipelined = true}), whole);
}

}  // namespace
}  // namespace qserve::tests
