// The GPU benchmark on the emulated GPU, at sizes that it can: every point is measured, and on a
// device too small for the work the points say so and the run goes on. Times mean nothing here.
#include "bench/gpu_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "bench/gpu_report.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"

namespace qserve::bench {
namespace {

using kernels::cuda::CudaBackend;
using kernels::cuda::EmulatedRuntime;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr GpuShape kTiny = {"tiny", 2, 256, 512, 4, 2, 64, 512};

GpuBenchOptions Small() {
  GpuBenchOptions options;
  options.shapes = {kTiny};
  options.linear_rows = {1, 17};
  options.attention_batches = {1, 2};
  options.attention_contexts = {70};
  options.beyond_cache = 0;
  options.prompt = 64;
  options.output = 4;
  options.prefill_rows = 128;
  options.most_sequences = 2;
  options.copy_floats = 1 << 14;
  options.peak_blocks = 1;
  options.peak_rounds = 1;
  options.timer = {.least_runs = 2, .most_runs = 2, .least_seconds = 0, .least_graph_seconds = 0};
  return options;
}

struct Outcome {
  kernels::Status status;
  std::vector<std::string> lines;

  std::vector<std::string> Of(const std::string& what) const {
    std::vector<std::string> found;
    for (const std::string& line : lines) {
      if (line.find("{\"what\": \"" + what + "\"") == 0) found.push_back(line);
    }
    return found;
  }
};

Outcome RunOn(int64_t memory_bytes, const GpuBenchOptions& options) {
  auto runtime = std::make_unique<EmulatedRuntime>(
      kernels::cuda::EmulatedDevice{.memory_bytes = memory_bytes});
  EmulatedRuntime& emulated = *runtime;
  auto gpu = CudaBackend::Create(std::move(runtime), {.memory = {.block_bytes = 0}});
  EXPECT_TRUE(gpu.ok());
  Outcome outcome;
  outcome.status =
      RunGpuBench(**gpu, options, [&](const std::string& line) { outcome.lines.push_back(line); });
  EXPECT_THAT(emulated.misuses(), ::testing::IsEmpty());
  return outcome;
}

TEST(GpuBench, MeasuresEveryPoint) {
  const Outcome all = RunOn(int64_t{64} << 20, Small());
  ASSERT_TRUE(all.status.ok()) << all.status.message();
  EXPECT_EQ(all.Of("ceilings").size(), 1u);
  EXPECT_EQ(all.Of("linear").size(), 2u * 4 * 2) << "formats, layers, rows";
  EXPECT_EQ(all.Of("attention").size(), 2u);
  EXPECT_EQ(all.Of("prefill").size(), 1u);
  EXPECT_EQ(all.Of("decode").size(), 2u * 3) << "batches of 1 and 2, three contexts";
  EXPECT_EQ(all.Of("offline_estimate").size(), 1u);
  EXPECT_THAT(all.lines, Each(AllOf(Not(HasSubstr("absent")), Not(HasSubstr("null")))));
  EXPECT_THAT(all.Of("linear"),
              Each(AllOf(HasSubstr("us_min"), HasSubstr("us_max"), HasSubstr("memory_percent"),
                         HasSubstr("tensor_percent"))));
  EXPECT_THAT(all.Of("attention"), Each(HasSubstr("tensor_percent")));
}

TEST(GpuBench, ShortWorkIsRepeatedInsideTheGraph) {
  GpuBenchOptions options = Small();
  options.parts = {"attention"};
  options.timer.least_graph_seconds = 100;
  options.timer.most_pieces = 6;
  const Outcome repeated = RunOn(int64_t{64} << 20, options);
  ASSERT_TRUE(repeated.status.ok()) << repeated.status.message();
  EXPECT_EQ(repeated.Of("attention").size(), 2u);
  EXPECT_EQ(repeated.Of("linear").size(), 0u);
  EXPECT_THAT(repeated.lines, Each(Not(HasSubstr("absent"))));
}

TEST(GpuBench, WhatDoesNotFitIsAbsentAndTheRestIsMeasured) {
  GpuBenchOptions options = Small();
  options.attention_batches = {1, 40'000};
  options.parts = {"attention", "steps"};
  options.most_sequences = 100'000;  // logits of so many rows
  const Outcome some = RunOn(int64_t{16} << 20, options);
  ASSERT_TRUE(some.status.ok()) << some.status.message();
  ASSERT_EQ(some.Of("attention").size(), 2u);
  EXPECT_THAT(some.Of("attention")[0], Not(HasSubstr("absent")));
  EXPECT_THAT(some.Of("attention")[1], HasSubstr("absent"));
  ASSERT_EQ(some.Of("step").size(), 1u);
  EXPECT_THAT(some.Of("step")[0], HasSubstr("absent"));
}

TEST(GpuReport, ALineIsJsonWhateverIsInIt) {
  EXPECT_EQ(JsonLine("a").Text("b", "c\"\\\n").Whole("d", -3).Number("e", 1.25, 1).Finish(),
            R"({"what": "a", "b": "c\"\\ ", "d": -3, "e": 1.2})");
  EXPECT_EQ(JsonLine("a").Number("e", NAN, 1).Finish(), R"({"what": "a", "e": null})");
}

}  // namespace
}  // namespace qserve::bench
