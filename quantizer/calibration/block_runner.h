// One transformer block on a device, a stage at a time and a window at a time: the operations that
// worker/model/llama.cc issues, over linears that may be in full precision or quantized already.
// The quantizer's own thread, which is then also the backend's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/block/matrix.h"
#include "worker/checkpoint/model_config.h"
#include "worker/model/activations.h"

namespace qserve::quantizer::calibration {

// The block's four products, by what they read.
enum class Stage { kQkv, kO, kGateUp, kDown };

// A linear on the device with memory for its input, of which the floats are kept.
struct DeviceLinear {
  std::unique_ptr<kernels::PackedLinear> weight;
  worker::model::LinearInputRows input;
};

// A block on the device. Linears may be replaced one by one, quantized for full precision.
struct DeviceBlock {
  int64_t layer = 0;
  std::array<DeviceLinear, 4> linears;  // by Stage
  kernels::Buffer input_gain, post_attention_gain, q_gain, k_gain;
  kernels::KvFormat kv_format = kernels::KvFormat::kF32;

  DeviceLinear& operator[](Stage stage) { return linears[static_cast<size_t>(stage)]; }
  const DeviceLinear& operator[](Stage stage) const { return linears[static_cast<size_t>(stage)]; }
};

class BlockRunner {
 public:
  // For windows of up to `length` tokens. The backend must outlive it.
  static absl::StatusOr<std::unique_ptr<BlockRunner>> Create(
      const worker::checkpoint::ModelConfig& config, kernels::Backend& backend, int64_t length);

  absl::StatusOr<DeviceBlock> Load(const BlockWeights& block, kernels::KvFormat kv_format);
  // Only the stage's linear, from fp32 weights or quantized ones, rows under one another.
  absl::Status Replace(Stage stage, const BlockWeights& block, DeviceBlock& device);
  absl::Status Replace(Stage stage, const std::vector<const kernels::LinearWeight*>& parts,
                       DeviceBlock& device);

  // Only the gains of q and k heads, where there are such.
  absl::Status ReplaceHeadGains(const BlockWeights& block, DeviceBlock& device);

  // What the stage's linear multiplies, in fp32 before any rounding, for a window whose residual
  // stream is `hidden` [tokens][hidden]: before the block for kQkv and kO, between attention and
  // feed-forward for kGateUp and kDown.
  absl::StatusOr<MatrixF> Input(const DeviceBlock& block, Stage stage, const MatrixF& hidden);

  // hidden += attention, or += feed-forward. If `input` is not null it receives what o, or down,
  // multiplied.
  absl::Status AddAttention(const DeviceBlock& block, MatrixF& hidden, MatrixF* input = nullptr);
  absl::Status AddFeedForward(const DeviceBlock& block, MatrixF& hidden, MatrixF* input = nullptr);

  // Queries and keys after q/k norm and rotation, in full precision, from the linear as it is.
  struct Rotated {
    MatrixF q;  // [tokens][heads * head_dim]
    MatrixF k;  // [tokens][kv_heads * head_dim]
  };
  absl::StatusOr<Rotated> RotatedQueriesAndKeys(const BlockWeights& block, const MatrixF& input);

  // Keys and values as nearly exact as the device stores them: fp32, or fp16 on a GPU.
  kernels::KvFormat exact_kv() const;

  const worker::checkpoint::ModelConfig& config() const { return config_; }
  kernels::Backend& backend() { return backend_; }

 private:
  BlockRunner(const worker::checkpoint::ModelConfig& config, kernels::Backend& backend,
              int64_t length)
      : config_(config), backend_(backend), length_(length) {}
  absl::Status Allocate();
  absl::StatusOr<kernels::Buffer> Upload(const VectorF& values);
  void Norm(const kernels::Buffer& gain, const DeviceLinear& linear, int64_t tokens);
  void RunAttention(const DeviceBlock& block, int64_t tokens);
  void RunSilu(const DeviceBlock& block, int64_t tokens);
  void PutHidden(const MatrixF& hidden);
  MatrixF TakeInput(const DeviceLinear& linear, int64_t tokens) const;

  const worker::checkpoint::ModelConfig config_;
  kernels::Backend& backend_;
  const int64_t length_;
  std::vector<float> host_cos_sin_;  // [length][head_dim]
  kernels::Buffer cos_sin_, pages_;
  std::vector<int32_t> block_table_;
  worker::model::FloatRows hidden_, qkv_, gate_up_, delta_;
};

}  // namespace qserve::quantizer::calibration
