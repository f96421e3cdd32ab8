// See model_shapes.h.
#include "bench/model_shapes.h"

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>

namespace qserve::bench {
namespace {

using Json = nlohmann::ordered_json;

enum class Kind { kLlama2, kLlama31, kLlama32, kMistral, kQwen2, kQwen3 };

struct Shape {
  const char* name;
  Kind kind;
  int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, positions;
  bool tied;
};

// The tiny ones are for tests: every size that the QoQ format and tensor parallelism over 2 can
// store.
constexpr Shape kShapes[] = {
    {"llama-3.2-1b", Kind::kLlama32, 2048, 8192, 16, 32, 8, 64, 128256, 131072, true},
    {"llama-3.2-3b", Kind::kLlama32, 3072, 8192, 28, 24, 8, 128, 128256, 131072, true},
    {"llama-3.1-8b", Kind::kLlama31, 4096, 14336, 32, 32, 8, 128, 128256, 131072, false},
    {"llama-3.1-70b", Kind::kLlama31, 8192, 28672, 80, 64, 8, 128, 128256, 131072, false},
    {"llama-2-7b", Kind::kLlama2, 4096, 11008, 32, 32, 32, 128, 32000, 4096, false},
    {"mistral-7b", Kind::kMistral, 4096, 14336, 32, 32, 8, 128, 32000, 32768, false},
    {"qwen2.5-0.5b", Kind::kQwen2, 896, 4864, 24, 14, 2, 64, 151936, 32768, true},
    {"qwen2.5-7b", Kind::kQwen2, 3584, 18944, 28, 28, 4, 128, 152064, 32768, false},
    {"qwen3-0.6b", Kind::kQwen3, 1024, 3072, 28, 16, 8, 128, 151936, 40960, true},
    {"tiny-llama", Kind::kLlama31, 256, 640, 2, 4, 2, 64, 512, 131072, false},
    {"tiny-llama-2", Kind::kLlama2, 256, 640, 2, 4, 4, 64, 512, 4096, false},
    {"tiny-mistral", Kind::kMistral, 256, 512, 2, 4, 2, 64, 512, 32768, false},
    {"tiny-qwen2", Kind::kQwen2, 256, 512, 2, 4, 2, 64, 512, 32768, true},
    {"tiny-qwen3", Kind::kQwen3, 128, 384, 2, 4, 2, 64, 512, 40960, true},
};

struct KindValues {
  const char* architecture;
  const char* model_type;
  double rope_theta;
  double rms_norm_eps;
};

KindValues ValuesOf(Kind kind) {
  switch (kind) {
    case Kind::kLlama2:
      return {"LlamaForCausalLM", "llama", 10000.0, 1e-5};
    case Kind::kLlama31:
    case Kind::kLlama32:
      return {"LlamaForCausalLM", "llama", 500000.0, 1e-5};
    case Kind::kMistral:
      return {"MistralForCausalLM", "mistral", 10000.0, 1e-5};
    case Kind::kQwen2:
      return {"Qwen2ForCausalLM", "qwen2", 1000000.0, 1e-6};
    case Kind::kQwen3:
      break;
  }
  return {"Qwen3ForCausalLM", "qwen3", 1000000.0, 1e-6};
}

struct SpecialTokens {
  int64_t bos = 0;
  std::vector<int64_t> eos;
};

// Where the families have them; a tiny vocabulary has them at its end.
SpecialTokens TokensOf(const Shape& shape) {
  if (shape.vocabulary < 32000) return {shape.vocabulary - 2, {shape.vocabulary - 1}};
  switch (shape.kind) {
    case Kind::kLlama2:
    case Kind::kMistral:
      return {1, {2}};
    case Kind::kLlama31:
    case Kind::kLlama32:
      return {128000, {128001, 128008, 128009}};
    case Kind::kQwen2:
    case Kind::kQwen3:
      break;
  }
  return {151643, {151645, 151643}};
}

void AddFamilyMembers(const Shape& shape, Json& config) {
  switch (shape.kind) {
    case Kind::kLlama2:
      break;
    case Kind::kLlama31:
    case Kind::kLlama32:
      config["rope_scaling"] = {{"factor", shape.kind == Kind::kLlama31 ? 8.0 : 32.0},
                                {"high_freq_factor", 4.0},
                                {"low_freq_factor", 1.0},
                                {"original_max_position_embeddings", 8192},
                                {"rope_type", "llama3"}};
      break;
    case Kind::kMistral:
      config["sliding_window"] = 4096;
      break;
    case Kind::kQwen2:
    case Kind::kQwen3:
      config["use_sliding_window"] = false;
      break;
  }
}

std::string ConfigJson(const Shape& shape) {
  const KindValues values = ValuesOf(shape.kind);
  const SpecialTokens tokens = TokensOf(shape);
  Json config = {{"architectures", Json::array({values.architecture})},
                 {"model_type", values.model_type},
                 {"hidden_size", shape.hidden},
                 {"intermediate_size", shape.intermediate},
                 {"num_hidden_layers", shape.layers},
                 {"num_attention_heads", shape.heads},
                 {"num_key_value_heads", shape.kv_heads},
                 {"head_dim", shape.head_dim},
                 {"vocab_size", shape.vocabulary},
                 {"max_position_embeddings", shape.positions},
                 {"rms_norm_eps", values.rms_norm_eps},
                 {"rope_theta", values.rope_theta},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", shape.tied},
                 {"bos_token_id", tokens.bos},
                 {"eos_token_id", tokens.eos},
                 {"torch_dtype", "bfloat16"}};
  AddFamilyMembers(shape, config);
  return config.dump(2) + "\n";
}

std::string GenerationJson(const Shape& shape) {
  const SpecialTokens tokens = TokensOf(shape);
  const Json config = {{"bos_token_id", tokens.bos},
                       {"eos_token_id", tokens.eos},
                       {"do_sample", true},
                       {"temperature", 0.6},
                       {"top_p", 0.9}};
  return config.dump(2) + "\n";
}

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<ModelShape> FindShape(std::string_view name) {
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return ModelShape{ConfigJson(shape), GenerationJson(shape)};
  }
  std::string known;
  for (const Shape& shape : kShapes)
    known += fmt::format("{}{}", known.empty() ? "" : ", ", shape.name);
  return absl::InvalidArgumentError(
      fmt::format("the shape \"{}\" is not known; there are {}", name, known));
}

}  // namespace qserve::bench
