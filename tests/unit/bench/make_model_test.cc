// Random checkpoints: every known shape is a valid configuration, tiny ones load in every scheme,
// bytes do not depend on threads, and the weights have the variance that keeps activations of order
// one.
#include "bench/make_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "bench/model_shapes.h"
#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/model_layout.h"

namespace qserve::bench {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Scheme;
using ::qserve::testing::ReadTextFile;
using ::qserve::testing::TemporaryDirectory;

TEST(ModelShapes, AreValidAndStorable) {
  for (const std::string& name : ShapeNames()) {
    SCOPED_TRACE(name);
    const ModelShape shape = *FindShape(name);
    const auto config = ckpt::ParseModelConfig(shape.config_json, shape.generation_config_json);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_FALSE(config->eos_token_ids.empty());
    for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(*config, 0)) {
      EXPECT_EQ(linear.n % 32, 0) << linear.name;
      EXPECT_EQ(linear.k % 128, 0) << linear.name;
    }
  }
  EXPECT_EQ(FindShape("llama-9").status().code(), absl::StatusCode::kInvalidArgument);
}

// Parameters as the publishers count them, without the norms: a slip in the table would show.
TEST(ModelShapes, HaveTheSizesTheyAreKnownBy) {
  const struct {
    const char* name;
    double billions;
  } cases[] = {{"llama-3.2-1b", 1.236},   {"llama-3.2-3b", 3.213}, {"llama-3.1-8b", 8.030},
               {"llama-3.1-70b", 70.554}, {"llama-2-7b", 6.738},   {"mistral-7b", 7.242},
               {"qwen2.5-0.5b", 0.494},   {"qwen2.5-7b", 7.616},   {"qwen3-0.6b", 0.596}};
  for (const auto& [name, billions] : cases) {
    const auto config = ckpt::ParseModelConfig(FindShape(name)->config_json, "");
    double parameters = 0;
    for (const ckpt::TensorSpec& tensor : ckpt::FloatTensors(*config)) {
      double count = 1;
      for (const int64_t dimension : tensor.shape) count *= static_cast<double>(dimension);
      parameters += count;
    }
    EXPECT_NEAR(parameters / 1e9, billions, 0.0006 * (billions < 1 ? 1 : billions)) << name;
  }
}

class MakeModelTest : public ::testing::TestWithParam<std::tuple<const char*, Scheme>> {};

TEST_P(MakeModelTest, LoadsAndHasTheRightVariance) {
  const auto& [shape, scheme] = GetParam();
  const TemporaryDirectory directory;
  MakeModelOptions options;
  options.scheme = scheme;
  ASSERT_TRUE(MakeModel(shape, directory / "a", options).ok());
  const auto checkpoint = ckpt::Checkpoint::Open(directory / "a");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ckpt::ModelConfig& config = (*checkpoint)->config();
  EXPECT_EQ(config.scheme, scheme);
  for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config, config.layers - 1)) {
    SCOPED_TRACE(linear.name);
    const auto weight =
        (*checkpoint)
            ->ReadLinear(linear.name, {0, linear.n}, {0, linear.k}, ckpt::LoadQuantization::kNone);
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_TRUE(kernels::Validate(*weight).ok());
    EXPECT_EQ(!weight->bias.empty(), linear.bias);
    std::vector<float> row(static_cast<size_t>(linear.k));
    double squares = 0;
    for (int64_t n = 0; n < linear.n; ++n) {
      kernels::DequantizeRow(*weight, n, row.data());
      for (const float value : row) squares += double{value} * value;
    }
    EXPECT_NEAR(squares / static_cast<double>(linear.n), 1.0, 0.1);
  }
}

TEST_P(MakeModelTest, ThreadsDoNotChangeABit) {
  const auto& [shape, scheme] = GetParam();
  const TemporaryDirectory directory;
  MakeModelOptions options;
  options.scheme = scheme;
  ASSERT_TRUE(MakeModel(shape, directory / "a", options).ok());
  options.threads = 4;
  ASSERT_TRUE(MakeModel(shape, directory / "b", options).ok());
  options.seed = 2;
  ASSERT_TRUE(MakeModel(shape, directory / "c", options).ok());
  const std::string once = ReadTextFile(directory / "a/model.safetensors");
  EXPECT_TRUE(once == ReadTextFile(directory / "b/model.safetensors"));
  EXPECT_FALSE(once == ReadTextFile(directory / "c/model.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(Tiny, MakeModelTest,
                         ::testing::Combine(::testing::Values("tiny-llama", "tiny-qwen2",
                                                              "tiny-qwen3"),
                                            ::testing::Values(Scheme::kFloat, Scheme::kQoqGroup128,
                                                              Scheme::kQoqPerChannel)));

TEST(MakeModel, RefusesWhatExistsAndCanBeInterrupted) {
  const TemporaryDirectory directory;
  EXPECT_EQ(MakeModel("tiny-llama", directory.path() + "/../", {}).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(MakeModel("unknown", directory / "a", {}).code(), absl::StatusCode::kInvalidArgument);
  const std::atomic<bool> interrupted = true;
  MakeModelOptions options;
  options.interrupted = &interrupted;
  EXPECT_EQ(MakeModel("tiny-llama", directory / "a", options).code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

}  // namespace
}  // namespace qserve::bench
