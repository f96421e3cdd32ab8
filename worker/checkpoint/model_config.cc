// config.json into ModelConfig. Each family says in one function what its architecture fixes
// (biases, norms, sliding window); sizes, rotary embedding and quantization are common. Callers and
// threads: any that open a model; nothing is kept.
#include "worker/checkpoint/model_config.h"

#include <algorithm>

#include <fmt/format.h>

#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/quantization_config.h"
#include "worker/checkpoint/rope_config.h"

namespace qserve::worker::checkpoint {
namespace {

// Bounds of what is believed at all: far above any dense model, low enough that products of any
// three fit in 64 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

constexpr const char* kConfigName = "config.json";

void ParseLlama(Fields& fields, ModelConfig& config) {
  config.attention_bias = fields.Bool("attention_bias").value_or(false);
  config.attention_out_bias = config.attention_bias;
  config.mlp_bias = fields.Bool("mlp_bias").value_or(false);
}

void ParseMistral(Fields&, ModelConfig&) {}

void ParseQwen2(Fields&, ModelConfig& config) { config.attention_bias = true; }

void ParseQwen3(Fields& fields, ModelConfig& config) {
  config.attention_bias = fields.Bool("attention_bias").value_or(false);
  config.attention_out_bias = config.attention_bias;
  config.qk_norm = true;
}

// How a family's configuration says which layers have a sliding window.
enum class Window {
  kNever,
  kAlways,   // Mistral: sliding_window (absent: 4096, null: none) in every layer
  kOptedIn,  // Qwen: only with use_sliding_window, from layer max_window_layers on
};

struct Family {
  const char* architecture;
  const char* model_type;
  Window window;
  void (*parse)(Fields&, ModelConfig&);
};

constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", "llama", Window::kNever, ParseLlama},
    {"MistralForCausalLM", "mistral", Window::kAlways, ParseMistral},
    {"Qwen2ForCausalLM", "qwen2", Window::kOptedIn, ParseQwen2},
    {"Qwen3ForCausalLM", "qwen3", Window::kOptedIn, ParseQwen3},
};

std::string SupportedArchitectures() {
  std::string names;
  for (const Family& family : kFamilies) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", family.architecture);
  }
  return names;
}

// By "architectures", else by "model_type".
absl::StatusOr<const Family*> FindFamily(Fields& fields) {
  std::string architecture;
  if (const nlohmann::json* list = fields.Find("architectures")) {
    if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: architectures must be a list with one name", kConfigName));
    }
    architecture = list->front().get<std::string>();
  }
  const std::string model_type = fields.String("model_type").value_or("");
  RETURN_IF_ERROR(fields.status());
  for (const Family& family : kFamilies) {
    if (architecture.empty() ? model_type == family.model_type
                             : architecture == family.architecture) {
      return &family;
    }
  }
  const bool experts =
      fields.Find("num_local_experts") != nullptr || fields.Find("num_experts") != nullptr;
  return absl::InvalidArgumentError(
      fmt::format("{}: the architecture \"{}\" is not supported{}; supported are {}", kConfigName,
                  Printable(architecture.empty() ? model_type : architecture),
                  experts ? " (mixture of experts)" : "", SupportedArchitectures()));
}

void ParseSizes(Fields& fields, ModelConfig& config) {
  config.hidden_size = fields.RequiredInteger("hidden_size", 1, kMaxWidth);
  config.intermediate_size = fields.RequiredInteger("intermediate_size", 1, kMaxWidth);
  config.layers = fields.RequiredInteger("num_hidden_layers", 1, kMaxLayers);
  config.heads = static_cast<int>(fields.RequiredInteger("num_attention_heads", 1, kMaxHeads));
  config.kv_heads =
      static_cast<int>(fields.Integer("num_key_value_heads", 1, kMaxHeads).value_or(config.heads));
  config.vocab_size = fields.RequiredInteger("vocab_size", 1, kMaxVocabulary);
  config.max_position_embeddings =
      fields.Integer("max_position_embeddings", 1, kMaxPositions).value_or(2048);
  config.rms_norm_eps =
      static_cast<float>(fields.Number("rms_norm_eps", 1e-30, 1.0).value_or(1e-6));
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings").value_or(false);
  const auto head_dim = fields.Integer("head_dim", 2, kMaxHeadDim);
  if (!fields.status().ok()) return;
  if (config.heads % config.kv_heads != 0) {
    fields.Fail(
        fmt::format("num_attention_heads ({}) must be a multiple of num_key_value_heads ({})",
                    config.heads, config.kv_heads));
  }
  if (!head_dim && config.hidden_size % config.heads != 0) {
    fields.Fail(fmt::format(
        "hidden_size ({}) must be a multiple of num_attention_heads ({}) unless head_dim is given",
        config.hidden_size, config.heads));
  }
  config.head_dim = static_cast<int>(head_dim.value_or(config.hidden_size / config.heads));
  if (config.head_dim % 2 != 0 || config.head_dim < 2 || config.head_dim > kMaxHeadDim) {
    fields.Fail(
        fmt::format("head_dim ({}) must be even and from 2 to {}", config.head_dim, kMaxHeadDim));
  }
}

void ParseActivation(Fields& fields) {
  const std::string activation = fields.String("hidden_act").value_or("silu");
  if (activation != "silu") {
    fields.Fail(fmt::format("hidden_act \"{}\" is not supported; supported is silu",
                            Printable(activation)));
  }
}

// "dtype" (transformers 5) or "torch_dtype" (4).
void ParseFloatType(Fields& fields, ModelConfig& config) {
  std::string name = "float32";
  if (const auto value = fields.String("torch_dtype")) name = *value;
  if (const auto value = fields.String("dtype")) name = *value;
  if (name.starts_with("torch.")) name.erase(0, 6);
  if (name == "float32") {
    config.float_type = kernels::FloatType::kF32;
  } else if (name == "float16") {
    config.float_type = kernels::FloatType::kF16;
  } else if (name == "bfloat16") {
    config.float_type = kernels::FloatType::kBf16;
  } else {
    fields.Fail(
        fmt::format("dtype \"{}\" is not supported; supported are float32, float16, bfloat16",
                    Printable(name)));
  }
}

// The layer_types list (transformers 5), one name a layer; empty if absent.
std::vector<std::string> ParseLayerTypes(Fields& fields, int64_t layers) {
  const nlohmann::json* list = fields.Find("layer_types");
  if (list == nullptr) return {};
  if (!list->is_array() || static_cast<int64_t>(list->size()) != layers) {
    fields.Fail("layer_types must be a list with one entry a layer");
    return {};
  }
  std::vector<std::string> types;
  for (const nlohmann::json& entry : *list) {
    const std::string type = entry.is_string() ? entry.get<std::string>() : "";
    if (type != "full_attention" && type != "sliding_attention") {
      fields.Fail(fmt::format(
          "the layer type \"{}\" is not supported; supported are full_attention, sliding_attention",
          Printable(type)));
      return {};
    }
    types.push_back(type);
  }
  return types;
}

// The window of the layers that slide, 0 for none.
int64_t ParseWindowSize(Fields& fields, Window window) {
  if (window == Window::kNever) return 0;
  if (window == Window::kOptedIn && !fields.Bool("use_sliding_window").value_or(false)) return 0;
  // Null says "no window"; a family's default holds only where the key is absent.
  if (fields.IsNull("sliding_window")) return 0;
  return fields.Integer("sliding_window", 1, kMaxPositions).value_or(4096);
}

void ParseWindows(Fields& fields, Window window, const std::vector<std::string>& layer_types,
                  ModelConfig& config) {
  const int64_t size = ParseWindowSize(fields, window);
  const int64_t first = window == Window::kOptedIn
                            ? fields.Integer("max_window_layers", 0, kMaxLayers).value_or(28)
                            : 0;
  config.sliding_window.assign(static_cast<size_t>(config.layers), 0);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const bool slides = layer_types.empty() ? size > 0 && layer >= first
                                            : layer_types[index] == "sliding_attention";
    if (slides && size == 0) {
      fields.Fail("layer_types names sliding_attention layers, but no sliding window is in effect");
      return;
    }
    config.sliding_window[index] = slides ? size : 0;
  }
}

std::vector<std::string> Distinct(std::vector<std::string> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

absl::StatusOr<ModelConfig> ParseObject(const nlohmann::json& object) {
  Fields fields(object, kConfigName);
  ModelConfig config;
  ASSIGN_OR_RETURN(const Family* family, FindFamily(fields));
  config.architecture = family->architecture;
  config.model_type = family->model_type;
  ParseSizes(fields, config);
  ParseActivation(fields);
  ParseFloatType(fields, config);
  family->parse(fields, config);
  RETURN_IF_ERROR(fields.status());
  const std::vector<std::string> layer_types = ParseLayerTypes(fields, config.layers);
  ParseWindows(fields, family->window, layer_types, config);
  config.eos_token_ids = ParseTokenIds(fields, "eos_token_id", config.vocab_size);
  if (const std::vector<int32_t> bos = ParseTokenIds(fields, "bos_token_id", config.vocab_size);
      !bos.empty()) {
    config.bos_token_id = bos.front();
  }
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(config.rope, ParseRope(object, kConfigName, Distinct(layer_types),
                                          config.max_position_embeddings));
  if (const nlohmann::json* quantization = fields.Find("quantization_config")) {
    RETURN_IF_ERROR(ParseQuantization(*quantization, "config.json: quantization_config", config));
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& config_json,
                                             const std::string& generation_config_json) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(config_json, kConfigName));
  ASSIGN_OR_RETURN(ModelConfig config, ParseObject(object));
  std::vector<int32_t>& eos = config.eos_token_ids;
  if (!generation_config_json.empty()) {
    ASSIGN_OR_RETURN(const GenerationTokens tokens,
                     ParseGenerationTokens(generation_config_json, config.vocab_size));
    eos.insert(eos.end(), tokens.eos.begin(), tokens.eos.end());
    if (!config.bos_token_id) config.bos_token_id = tokens.bos;
  }
  std::sort(eos.begin(), eos.end());
  eos.erase(std::unique(eos.begin(), eos.end()), eos.end());
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadSmallFile(directory + "/config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string generation, ReadGenerationConfig(directory));
  absl::StatusOr<ModelConfig> config = ParseModelConfig(text, generation);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        fmt::format("{}/{}", directory, std::string(config.status().message())));
  }
  return config;
}

}  // namespace qserve::worker::checkpoint
