// Random blocks of every kind of model that transforms have to leave alone: grouped heads, biases,
// norms of q and k heads. Test programs only.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device_factory.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "tests/fakes/random_model.h"
#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::quantizer {

inline std::string SmallModel(const std::string& architecture, int kv_heads,
                              const std::string& more = "") {
  return R"({"architectures": [")" + architecture + R"("], "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
    "vocab_size": 96, "max_position_embeddings": 256, "rope_theta": 10000.0,
    "num_key_value_heads": )" +
         std::to_string(kv_heads) + more + "}";
}

inline std::vector<std::string> SmallModels() {
  return {SmallModel("LlamaForCausalLM", 4),
          SmallModel("LlamaForCausalLM", 2, R"(, "attention_bias": true, "mlp_bias": true)"),
          SmallModel("Qwen2ForCausalLM", 2), SmallModel("Qwen3ForCausalLM", 1)};
}

// A random model on disk, its first block and a device to run it on.
class BlockFixture {
 public:
  explicit BlockFixture(const std::string& config) {
    const absl::Status status = fakes::WriteRandomModel(directory_ / "model", config, {});
    EXPECT_TRUE(status.ok()) << status;
    checkpoint_ = *worker::checkpoint::Checkpoint::Open(directory_ / "model");
    backend_ = *kernels::CreateBackend({.device = "cpu", .threads = 2});
    runner_ = *calibration::BlockRunner::Create(checkpoint_->config(), *backend_, 64);
  }

  BlockWeights Block() const { return *ReadBlock(*checkpoint_, 0, 2); }
  calibration::BlockRunner& runner() { return *runner_; }
  const worker::checkpoint::Checkpoint& checkpoint() const { return *checkpoint_; }

  // 40 tokens of a residual stream with one channel that stands out.
  static MatrixF Hidden(int64_t columns) {
    MatrixF hidden(40, columns);
    for (int64_t i = 0; i < hidden.size(); ++i) {
      hidden.data()[i] = 0.01f * static_cast<float>((i * 7919 + 13) % 401 - 200);
    }
    hidden.col(5) *= 8;
    return hidden;
  }

  // The residual stream behind the block.
  MatrixF Run(const BlockWeights& block, MatrixF hidden,
              kernels::KvFormat kv = kernels::KvFormat::kF32) {
    const calibration::DeviceBlock device = *runner_->Load(block, kv);
    EXPECT_TRUE(runner_->AddAttention(device, hidden).ok());
    EXPECT_TRUE(runner_->AddFeedForward(device, hidden).ok());
    return hidden;
  }

 private:
  ::qserve::testing::TemporaryDirectory directory_;
  std::unique_ptr<worker::checkpoint::Checkpoint> checkpoint_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<calibration::BlockRunner> runner_;
};

// |a - b| relative to |b|, largest element for element.
inline float Difference(const MatrixF& a, const MatrixF& b) {
  return (a - b).cwiseAbs().maxCoeff() / b.cwiseAbs().maxCoeff();
}

}  // namespace qserve::quantizer
