// What loading a model takes beside what it leaves there: the peak of anonymous memory, sampled, on
// a model large enough that a second copy of anything would show. Pages of the mapped files belong
// to the page cache and do not count.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "tests/integration/model_fixture.h"
#include "worker/comm/local_host_group.h"
#include "worker/exec/rank.h"

namespace qserve::tests {
namespace {

constexpr bool kSanitized = QSERVE_SANITIZED;

// Of this process, now.
int64_t AnonymousBytes() {
  std::ifstream file("/proc/self/status");
  for (std::string key; file >> key; file.ignore(1 << 10, '\n')) {
    int64_t kilobytes = 0;
    if (key == "RssAnon:" && file >> kilobytes) return kilobytes << 10;
  }
  return 0;
}

// Watches from its making to Stop.
class PeakOfMemory {
 public:
  PeakOfMemory() : before_(AnonymousBytes()), thread_([this] { Watch(); }) {}
  // The most since the making, less what was there.
  int64_t Stop() {
    done_ = true;
    thread_.join();
    return peak_ - before_;
  }

 private:
  void Watch() {
    do {
      peak_ = std::max(peak_, AnonymousBytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } while (!done_);
  }

  const int64_t before_;
  int64_t peak_ = 0;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

TEST(ModelMemory, LoadingTakesLittleMoreThanItLeaves) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have memory of their own";
  const TemporaryFolder folder;
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
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
  const absl::Status written = fakes::WriteRandomModel(folder.Sub("model"), config.dump(),
                                                       {.dtype = worker::checkpoint::Dtype::kBf16});
  ASSERT_TRUE(written.ok()) << written;
  worker::comm::LocalHostGroup group;
  PeakOfMemory memory;
  const auto rank =
      worker::exec::Rank::Create({.model_dir = folder.Sub("model"),
                                  .device = "cpu",
                                  .threads = 2,
                                  .max_num_seqs = 8,
                                  .max_num_batched_tokens = 64,
                                  .kv_cache_memory = int64_t{8} << 20,
                                  .quantize = worker::checkpoint::LoadQuantization::kRtnGroup128},
                                 group, worker::exec::DefaultCommunicator({}, nullptr));
  const int64_t peak = memory.Stop();
  ASSERT_TRUE(rank.ok()) << rank.status();
  const int64_t left = (*rank)->description().weight_bytes +
                       (*rank)->limits().blocks * int64_t{worker::plan::kBlockTokens} *
                           (*rank)->limits().kv_bytes_per_token;
  RecordProperty("peak", std::to_string(peak));
  RecordProperty("left", std::to_string(left));
  EXPECT_GT(left, int64_t{150} << 20);
  EXPECT_LT(static_cast<double>(peak), 1.10 * static_cast<double>(left))
      << peak << " bytes at most, " << left << " of weights and KV cache";
}

}  // namespace
}  // namespace qserve::tests
