// Calibration on a GPU, here the emulated one: the same block within what fp16 activations and
// keys and values cost, and a whole model quantized with it.
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"
#include "quantizer/calibration/gram.h"
#include "quantizer/pipeline.h"
#include "quantizer/recipe.h"
#include "tests/fakes/random_model.h"
#include "tests/unit/quantizer/transform/block_testing.h"

namespace qserve::quantizer {
namespace {

using kernels::Backend;
using kernels::StatusOr;

StatusOr<std::unique_ptr<Backend>> Emulated(const kernels::DeviceOptions& /*options*/) {
  auto runtime = std::make_unique<kernels::cuda::EmulatedRuntime>(
      kernels::cuda::EmulatedDevice{.memory_bytes = int64_t{256} << 20});
  kernels::cuda::CudaBackendOptions options;
  options.memory.block_bytes = 0;
  options.memory.headroom_bytes = 0;
  auto backend = kernels::cuda::CudaBackend::Create(std::move(runtime), options);
  if (!backend.ok()) return backend.status();
  return std::unique_ptr<Backend>(*std::move(backend));
}

// A GPU has heads of 64 channels and more.
std::string ModelForGpus(const std::string& architecture, const std::string& more = "") {
  return R"({"architectures": [")" + architecture + R"("], "hidden_size": 128,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64,
    "num_key_value_heads": 1, "vocab_size": 96, "max_position_embeddings": 64,
    "rope_theta": 10000.0)" +
         more + "}";
}

TEST(EmulatedDevice, MultipliesInFullPrecision) {
  const auto backend = *Emulated({});
  const MatrixF a = MatrixF::Random(20, 33), b = MatrixF::Random(20, 70);
  MatrixD sum;
  ASSERT_TRUE(calibration::AddGram(*backend, a, b, sum).ok());
  const MatrixD exact = a.cast<double>().transpose() * b.cast<double>();
  EXPECT_LT((sum - exact).cwiseAbs().maxCoeff(), 1e-5);
}

TEST(EmulatedDevice, RunsABlockAsTheCpuDoes) {
  for (const std::string& config :
       {ModelForGpus("LlamaForCausalLM", R"(, "attention_bias": true, "mlp_bias": true)"),
        ModelForGpus("Qwen3ForCausalLM")}) {
    BlockFixture fixture(config);
    const BlockWeights block = fixture.Block();
    const auto backend = *Emulated({});
    const auto runner =
        *calibration::BlockRunner::Create(fixture.checkpoint().config(), *backend, 64);
    EXPECT_EQ(runner->exact_kv(), kernels::KvFormat::kF16);
    const auto device = *runner->Load(block, runner->exact_kv());
    const MatrixF before = BlockFixture::Hidden(128);
    MatrixF hidden = before, input;
    ASSERT_TRUE(runner->AddAttention(device, hidden, &input).ok());
    ASSERT_TRUE(runner->AddFeedForward(device, hidden).ok());
    const MatrixF exact = fixture.Run(block, before);
    const auto cpu = *fixture.runner().Load(block, kernels::KvFormat::kF32);
    const MatrixF exact_input = *fixture.runner().Input(cpu, calibration::Stage::kO, before);
    EXPECT_LT(Difference(input, exact_input), 5e-3);
    EXPECT_LT(Difference(hidden, exact), 5e-3);
    EXPECT_NE(hidden, exact);
  }
}

TEST(EmulatedDevice, CalibratesAWholeModel) {
  const ::qserve::testing::TemporaryDirectory directory;
  ASSERT_TRUE(
      fakes::WriteRandomModel(directory / "model", ModelForGpus("LlamaForCausalLM"), {}).ok());
  QuantizeOptions options;
  options.model = directory / "model";
  options.settings = (*FindRecipe("qoq-g128"))->settings;
  options.settings.windows.length = 16;
  options.settings.windows.samples = 2;
  options.settings.transform.attention.steps = 1;
  options.settings.transform.attention.windows = 1;
  options.settings.transform.down_proj.steps = 1;
  options.calibration.resize(32);
  std::iota(options.calibration.begin(), options.calibration.end(), 7);
  options.device = "cuda";
  options.output = directory / "refused";
  if (!kernels::CreateBackend({.device = "cuda"}).ok()) {
    EXPECT_FALSE(QuantizeModel(options).ok());
    EXPECT_FALSE(std::filesystem::exists(options.output));
  }
  options.create_backend = Emulated;
  options.output = directory / "output";
  const absl::Status status = QuantizeModel(options);
  ASSERT_TRUE(status.ok()) << status;
  const auto written = worker::checkpoint::Checkpoint::Open(options.output);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->config().scheme, worker::checkpoint::Scheme::kQoqGroup128);
}

}  // namespace
}  // namespace qserve::quantizer
