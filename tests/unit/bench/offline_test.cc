// A model loaded once for several batches: the largest batch that is said to fit runs without
// preemption, one more is refused, and the real engine does the same on the emulated GPU, whose
// decoding steps are recorded.
#include "bench/offline.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "bench/make_model.h"
#include "tests/unit/bench/emulated_device.h"
#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::bench {
namespace {

using ::qserve::testing::TemporaryDirectory;

constexpr int32_t kPrompt = 70, kOutput = 4;

class Offline : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.executor.model_dir = directory_.path() + "/model";
    options_.executor.device = "cpu";
    options_.executor.threads = 1;
    options_.executor.max_num_seqs = 12;
    options_.executor.max_num_batched_tokens = 96;
    options_.executor.max_model_len = kPrompt + kOutput;
    options_.executor.kv_cache_memory = int64_t{400} << 10;
    options_.prompt_length = kPrompt;
    options_.output_length = kOutput;
    const absl::Status made = MakeModel("tiny-llama", options_.executor.model_dir, {});
    ASSERT_TRUE(made.ok()) << made;
  }

  void ExpectRuns(OfflineSession& session, int32_t batch) {
    options_.batch = batch;
    ASSERT_TRUE(session.WarmUp(options_).ok());
    for (int turn = 0; turn < 2; ++turn) {
      const auto run = session.Run(options_);
      ASSERT_TRUE(run.ok()) << run.status();
      EXPECT_GT(run->prefill_seconds, 0);
      // Every token is the first of its sequence, or counted on one side.
      EXPECT_EQ(batch + run->early_tokens + run->decode_tokens, int64_t{batch} * kOutput);
    }
  }

  TemporaryDirectory directory_;
  OfflineOptions options_;
};

TEST_F(Offline, TheLargestBatchRunsAndOneMoreIsRefused) {
  auto loaded = OfflineSession::Load(options_.executor);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  OfflineSession& session = **loaded;
  const int32_t largest = session.LargestBatch(kPrompt, kOutput);
  ASSERT_GT(largest, 1);
  ASSERT_LT(largest, options_.executor.max_num_seqs) << "the cache is to bound it here";
  ExpectRuns(session, 1);
  ExpectRuns(session, largest);
  options_.batch = largest + 1;
  EXPECT_EQ(session.Run(options_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Offline, SlotsAndContextBoundABatchAsWell) {
  options_.executor.kv_cache_memory = int64_t{4} << 20;
  const auto session = OfflineSession::Load(options_.executor);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->LargestBatch(kPrompt, kOutput), options_.executor.max_num_seqs);
  EXPECT_EQ((*session)->LargestBatch(kPrompt, kOutput + 1), 0) << "longer than the context";
  options_.batch = options_.executor.max_num_seqs + 1;
  EXPECT_EQ((*session)->Run(options_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Offline, TheEmulatedGpuRunsTheSameEngine) {
  const worker::exec::BackendFactory device = EmulatedDevice();
  if (device == nullptr) GTEST_SKIP() << "real GPUs are built in";
  options_.executor.device = "cuda";
  options_.executor.max_num_seqs = 3;
  options_.executor.kv_cache_memory = 0;  // what the device has left
  const auto session = OfflineSession::Load(options_.executor, device);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_FALSE((*session)->rank().recorded_rows().empty());
  ExpectRuns(**session, (*session)->LargestBatch(kPrompt, kOutput));
}

}  // namespace
}  // namespace qserve::bench
