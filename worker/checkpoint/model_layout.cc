// See model_layout.h. The names are those of transformers' Llama, Mistral, Qwen2 and Qwen3.
#include "worker/checkpoint/model_layout.h"

#include <fmt/format.h>

namespace qserve::worker::checkpoint {

std::vector<LinearSpec> LayerLinears(const ModelConfig& config, int64_t layer) {
  const std::string block = fmt::format("model.layers.{}.", layer);
  const std::string attention = block + "self_attn.", mlp = block + "mlp.";
  const std::string input_norm = block + "input_layernorm.weight";
  const std::string mlp_norm = block + "post_attention_layernorm.weight";
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = int64_t{config.heads} * config.head_dim,
                kv = int64_t{config.kv_heads} * config.head_dim;
  const bool bias = config.attention_bias, out_bias = config.attention_out_bias,
             mlp_bias = config.mlp_bias;
  return {
      {attention + "q_proj", q, hidden, bias, input_norm},
      {attention + "k_proj", kv, hidden, bias, input_norm},
      {attention + "v_proj", kv, hidden, bias, input_norm},
      {attention + "o_proj", hidden, q, out_bias, ""},
      {mlp + "gate_proj", inner, hidden, mlp_bias, mlp_norm},
      {mlp + "up_proj", inner, hidden, mlp_bias, mlp_norm},
      {mlp + "down_proj", hidden, inner, mlp_bias, ""},
  };
}

std::vector<TensorSpec> FloatTensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  std::vector<TensorSpec> tensors = {
      {kEmbeddingTensor, {config.vocab_size, hidden}, TensorRole::kEmbedding}};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    tensors.push_back({block + "input_layernorm.weight", {hidden}, TensorRole::kNormGain});
    for (const LinearSpec& linear : LayerLinears(config, layer)) {
      tensors.push_back({linear.name + ".weight", {linear.n, linear.k}, TensorRole::kLinearWeight});
      if (linear.bias)
        tensors.push_back({linear.name + ".bias", {linear.n}, TensorRole::kLinearBias});
    }
    tensors.push_back({block + "post_attention_layernorm.weight", {hidden}, TensorRole::kNormGain});
    if (config.qk_norm) {
      tensors.push_back(
          {block + "self_attn.q_norm.weight", {config.head_dim}, TensorRole::kNormGain});
      tensors.push_back(
          {block + "self_attn.k_norm.weight", {config.head_dim}, TensorRole::kNormGain});
    }
  }
  tensors.push_back({kFinalNormTensor, {hidden}, TensorRole::kNormGain});
  if (!config.tie_word_embeddings) {
    tensors.push_back({kHeadTensor, {config.vocab_size, hidden}, TensorRole::kHead});
  }
  return tensors;
}

}  // namespace qserve::worker::checkpoint
