// What loading and running a model takes beside what it leaves there, sampled, on a model large
// enough that a second copy of anything would show: anonymous memory, and pages of the mapped
// checkpoint, which count as this process' for as long as it keeps them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/model_fixture.h"
#include "worker/comm/local_host_group.h"
#include "worker/exec/rank.h"

namespace qserve::tests {
namespace {

constexpr bool kSanitized = QSERVE_SANITIZED;

struct Memory {
  int64_t anonymous = 0;
  int64_t file = 0;  // pages of mapped files, this program's among them
};

// Of this process, now.
Memory MemoryNow() {
  Memory memory;
  std::ifstream status("/proc/self/status");
  for (std::string key; status >> key; status.ignore(1 << 10, '\n')) {
    int64_t kilobytes = 0;
    if (key == "RssAnon:" && status >> kilobytes) memory.anonymous = kilobytes << 10;
    if (key == "RssFile:" && status >> kilobytes) memory.file = kilobytes << 10;
  }
  return memory;
}

// Watches from its making to Stop.
class PeakOfMemory {
 public:
  PeakOfMemory() : before_(MemoryNow()), thread_([this] { Watch(); }) {}
  ~PeakOfMemory() {
    if (thread_.joinable()) Stop();
  }
  // The most since the making, less what was there.
  Memory Stop() {
    done_ = true;
    thread_.join();
    return {peak_.anonymous - before_.anonymous, peak_.file - before_.file};
  }

 private:
  void Watch() {
    do {
      const Memory now = MemoryNow();
      peak_ = {std::max(peak_.anonymous, now.anonymous), std::max(peak_.file, now.file)};
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } while (!done_);
  }

  const Memory before_;
  Memory peak_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

constexpr int64_t kMebibyte = int64_t{1} << 20;
constexpr int32_t kPromptTokens = 1536;

// 96 MiB of embedding, tied, and 120 MiB of linears, in bf16.
nlohmann::json Config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 1024},
          {"intermediate_size", 4096},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 16},
          {"num_key_value_heads", 4},
          {"vocab_size", 49152},
          {"max_position_embeddings", 2048},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", true},
          {"torch_dtype", "bfloat16"}};
}

class ModelMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "sanitizers have memory of their own";
    const absl::Status written = fakes::WriteRandomModel(
        folder_.Sub("model"), Config().dump(), {.dtype = worker::checkpoint::Dtype::kBf16});
    ASSERT_TRUE(written.ok()) << written;
  }
  void Load(int64_t max_step_tokens) {
    auto rank =
        worker::exec::Rank::Create({.model_dir = folder_.Sub("model"),
                                    .device = "cpu",
                                    .threads = 2,
                                    .max_num_seqs = 8,
                                    .max_num_batched_tokens = max_step_tokens,
                                    .kv_cache_memory = 8 * kMebibyte,
                                    .quantize = worker::checkpoint::LoadQuantization::kRtnGroup128},
                                   group_, worker::exec::DefaultCommunicator({}, nullptr));
    ASSERT_TRUE(rank.ok()) << rank.status();
    rank_ = *std::move(rank);
  }
  int64_t WeightsAndKvCache() const {
    return rank_->description().weight_bytes + rank_->limits().blocks *
                                                   int64_t{worker::plan::kBlockTokens} *
                                                   rank_->limits().kv_bytes_per_token;
  }

  const TemporaryFolder folder_;
  worker::comm::LocalHostGroup group_;
  std::unique_ptr<worker::exec::Rank> rank_;
};

// The embedding is no part of the weights: it stays in its file, of which no page is kept.
TEST_F(ModelMemory, LoadingTakesLittleMoreThanItLeaves) {
  const int64_t file_before = MemoryNow().file;
  PeakOfMemory memory;
  Load(64);
  const Memory peak = memory.Stop();
  ASSERT_NE(rank_, nullptr);
  const int64_t left = WeightsAndKvCache();
  RecordProperty("anonymous", std::to_string(peak.anonymous));
  RecordProperty("mapped", std::to_string(peak.file));
  RecordProperty("left", std::to_string(left));
  EXPECT_GT(left, 80 * kMebibyte);
  EXPECT_LT(left, 110 * kMebibyte);  // not the 96 MiB of embedding too
  EXPECT_LT(static_cast<double>(peak.anonymous), 1.10 * static_cast<double>(left))
      << peak.anonymous << " bytes at most, " << left << " of weights and KV cache";
  EXPECT_GT(rank_->description().checkpoint_bytes, 200 * kMebibyte);
  EXPECT_LT(peak.file, 64 * kMebibyte);  // of 216
  EXPECT_LT(MemoryNow().file - file_before, 16 * kMebibyte);
}

// A prompt of many tokens takes what the description says, and its rows of the embedding nothing.
TEST_F(ModelMemory, StepsTakeWhatIsSaid) {
  Load(kPromptTokens);
  ASSERT_NE(rank_, nullptr);
  std::vector<int32_t> ids, pages;
  for (int32_t i = 0; i < kPromptTokens; ++i) ids.push_back(i * 31 % 49152);
  for (int32_t i = 0; i < kPromptTokens / worker::plan::kBlockTokens; ++i) pages.push_back(i);
  const kernels::SequenceSpan sequence = {.row_count = kPromptTokens, .block_table = pages};
  const int32_t last[] = {kPromptTokens - 1};
  PeakOfMemory memory;
  const kernels::Status status = rank_->backend().Run(0, [&] {
    rank_->model().Forward({.token_ids = ids, .sequences = {&sequence, 1}, .logit_rows = last},
                           rank_->kv_cache().layers(), nullptr);
  });
  const Memory peak = memory.Stop();
  ASSERT_TRUE(status.ok()) << status.message();
  const int64_t said = rank_->description().activation_bytes;
  RecordProperty("anonymous", std::to_string(peak.anonymous));
  RecordProperty("said", std::to_string(said));
  EXPECT_LT(said, 40 * kMebibyte);
  // Beside it keys and values, and what the kernels need for a moment.
  EXPECT_LT(peak.anonymous, said + 8 * kMebibyte + 16 * kMebibyte);
  EXPECT_LT(peak.file, 8 * kMebibyte);
}

}  // namespace
}  // namespace qserve::tests
