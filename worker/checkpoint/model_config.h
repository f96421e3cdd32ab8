// What a Hugging Face model directory says about a model, validated: config.json as transformers 4
// writes it (rope_theta, rope_scaling, torch_dtype) and as 5 does (rope_parameters, dtype,
// layer_types), generation_config.json and the quantization_config of a QoQ checkpoint. Unknown
// architectures, rope types and quantization methods are InvalidArgument with the reason and what
// is supported.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/types.h"

namespace qserve::worker::checkpoint {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn };

// Rotary position embedding with its scaling; fields as in transformers' rope_parameters.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32.0;  // yarn
  double beta_slow = 1.0;
  double mscale = 0.0;          // yarn, 0: absent
  double mscale_all_dim = 0.0;  // yarn, 0: absent
  std::optional<double> attention_factor;
  bool truncate = true;  // yarn: round the correction range outwards
};

// How the linears of the transformer blocks are stored.
enum class Scheme { kFloat, kQoqGroup128, kQoqPerChannel };

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", ...
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-5f;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v projections have a bias (Qwen1.5/2/2.5, some Llamas)
  bool attention_out_bias =
      false;  // o projection has a bias (LlamaForCausalLM with attention_bias)
  bool mlp_bias = false;
  bool qk_norm = false;  // RMS norm of each q and k head (Qwen3)
  // Positions a layer attends to: 0 = all. One entry a layer (Mistral: the same everywhere; Qwen2
  // with use_sliding_window and layer_types: per layer).
  std::vector<int64_t> sliding_window;
  RopeConfig rope;
  kernels::FloatType float_type = kernels::FloatType::kF32;  // of the stored floating-point weights
  Scheme scheme = Scheme::kFloat;
  std::optional<int> kv_bits;          // from quantization_config: 4, 8 or 16
  std::vector<int> layer_kv_bits;      // from quantization_config, empty or one entry a layer
  std::optional<int> lm_head_bits;     // 16, 8 or 4, where the quantizer measured it
  std::vector<int32_t> eos_token_ids;  // union of config.json and generation_config.json
  std::optional<int32_t> bos_token_id;
};

// Defaults of unset sampling parameters, from generation_config.json; absent: 1 / off / as OpenAI's
// API has it.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 when do_sample is false
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

// Reads and validates `directory`'s config.json (and generation_config.json where there is one).
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::string& directory);

// From text, for tests and fuzzing.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& config_json,
                                             const std::string& generation_config_json);

}  // namespace qserve::worker::checkpoint
