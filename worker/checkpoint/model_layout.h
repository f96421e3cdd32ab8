// Which tensors a model of a given configuration has in a Hugging Face checkpoint: their names,
// shapes and roles. Used by whoever writes checkpoints (quantizer, makers of random models) and by
// the check of a checkpoint against its configuration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/checkpoint/model_config.h"

namespace qserve::worker::checkpoint {

// One linear layer of a transformer block: y[n] = W[n][k] x[k] (+ bias).
struct LinearSpec {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t n = 0;
  int64_t k = 0;
  bool bias = false;
  std::string norm;  // the norm whose output it reads, "" for o_proj and down_proj
};

// The seven linears of a block in the order q, k, v, o, gate, up, down.
std::vector<LinearSpec> LayerLinears(const ModelConfig& config, int64_t layer);

enum class TensorRole { kEmbedding, kNormGain, kLinearWeight, kLinearBias, kHead };

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorRole role = TensorRole::kLinearWeight;
};

// Every tensor of a floating-point checkpoint: embedding, blocks in order, final norm, lm_head
// (absent where tied).
std::vector<TensorSpec> FloatTensors(const ModelConfig& config);

inline constexpr const char* kEmbeddingTensor = "model.embed_tokens.weight";
inline constexpr const char* kFinalNormTensor = "model.norm.weight";
inline constexpr const char* kHeadTensor = "lm_head.weight";

}  // namespace qserve::worker::checkpoint
