// See export.h.
#include "quantizer/export.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/status_macros.h"
#include "worker/checkpoint/quantization_config.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Dtype;

constexpr const char* kCopiedFiles[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
};

void AddLinear(const ckpt::LinearSpec& linear, ckpt::Scheme scheme,
               std::vector<ckpt::TensorInfo>& tensors) {
  const auto add = [&](const char* suffix, Dtype dtype, std::vector<int64_t> shape) {
    tensors.push_back({linear.name + suffix, dtype, std::move(shape)});
  };
  add(".qweight", Dtype::kI8, {linear.n, linear.k / 2});
  add(".s1_scales", Dtype::kF16, {linear.n});
  if (scheme == ckpt::Scheme::kQoqPerChannel) {
    add(".s1_szeros", Dtype::kF16, {linear.n});
  } else {
    add(".s2_scales", Dtype::kI8, {linear.k / 128, linear.n});
    add(".s2_zeros", Dtype::kI8, {linear.k / 128, linear.n});
  }
  if (linear.bias) add(".bias", Dtype::kF16, {linear.n});
}

}  // namespace

std::vector<ckpt::TensorInfo> BlockTensors(const ckpt::ModelConfig& config, ckpt::Scheme scheme,
                                           int64_t layer) {
  const int64_t hidden = config.hidden_size;
  const std::string block = fmt::format("model.layers.{}.", layer);
  std::vector<ckpt::TensorInfo> tensors = {
      {block + "input_layernorm.weight", Dtype::kF16, {hidden}},
      {block + "post_attention_layernorm.weight", Dtype::kF16, {hidden}}};
  if (config.qk_norm) {
    tensors.push_back({block + "self_attn.q_norm.weight", Dtype::kF16, {config.head_dim}});
    tensors.push_back({block + "self_attn.k_norm.weight", Dtype::kF16, {config.head_dim}});
  }
  for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config, layer))
    AddLinear(linear, scheme, tensors);
  return tensors;
}

std::vector<ckpt::TensorInfo> QoqTensors(const ckpt::ModelConfig& config, ckpt::Scheme scheme) {
  const int64_t hidden = config.hidden_size;
  std::vector<ckpt::TensorInfo> tensors = {
      {ckpt::kEmbeddingTensor, Dtype::kF16, {config.vocab_size, hidden}}};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (ckpt::TensorInfo& tensor : BlockTensors(config, scheme, layer))
      tensors.push_back(std::move(tensor));
  }
  tensors.push_back({ckpt::kFinalNormTensor, Dtype::kF16, {hidden}});
  tensors.push_back({ckpt::kHeadTensor, Dtype::kF16, {config.vocab_size, hidden}});
  return tensors;
}

absl::Status WriteLinear(ckpt::SafetensorsWriter& writer, const std::string& name,
                         const kernels::QServeTensors& tensors) {
  const auto append = [&](const char* suffix, const auto& values) {
    return values.empty() ? absl::OkStatus() : writer.AppendSpan(name + suffix, std::span(values));
  };
  RETURN_IF_ERROR(append(".qweight", tensors.qweight));
  RETURN_IF_ERROR(append(".s1_scales", tensors.s1_scales));
  RETURN_IF_ERROR(append(".s1_szeros", tensors.s1_szeros));
  RETURN_IF_ERROR(append(".s2_scales", tensors.s2_scales));
  RETURN_IF_ERROR(append(".s2_zeros", tensors.s2_zeros));
  return append(".bias", tensors.bias);
}

absl::StatusOr<std::string> QoqConfigJson(const std::string& source_json, ckpt::Scheme scheme,
                                          int kv_bits, int lm_head_bits) {
  nlohmann::ordered_json config =
      nlohmann::ordered_json::parse(source_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object())
    return absl::InvalidArgumentError("config.json: a JSON object is expected");
  config["tie_word_embeddings"] = false;
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = "float16";
  config["quantization_config"] = ckpt::QuantizationObject(scheme, kv_bits);
  if (lm_head_bits != 0) config["quantization_config"]["lm_head_bits"] = lm_head_bits;
  return config.dump(2) + "\n";
}

absl::Status CopyModelFiles(const std::string& model, ckpt::OutputDirectory& output) {
  for (const char* name : kCopiedFiles) {
    const std::string source = fmt::format("{}/{}", model, name);
    std::error_code error;
    if (std::filesystem::exists(source, error)) RETURN_IF_ERROR(output.CopyFile(source));
  }
  return absl::OkStatus();
}

}  // namespace qserve::quantizer
