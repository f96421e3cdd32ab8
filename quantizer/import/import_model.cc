// See import_model.h.
#include "quantizer/import/import_model.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>

#include "common/log.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "kernels/quant/qserve_pack.h"
#include "quantizer/export.h"
#include "quantizer/progress.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/quantization_config.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using Json = nlohmann::ordered_json;

constexpr double kGainTolerance = 1e-3;  // of a norm that was folded

// A name and what it stands for, of a flag.
template <class T, size_t N>
absl::StatusOr<T> Choose(std::string_view text,
                         const std::pair<std::string_view, T> (&choices)[N]) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(fmt::format("\"{}\" is none of {}", text, names));
}

// config.json without the quantization of another program, and that by itself.
struct SourceConfig {
  Json json;
  nlohmann::json quantization;
  ckpt::ModelConfig model;
};

absl::StatusOr<SourceConfig> ReadConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, ckpt::kMaxConfigBytes));
  ASSIGN_OR_RETURN(const nlohmann::json checked, ckpt::ParseJsonObject(text, path));
  SourceConfig config = {.json = Json::parse(text, nullptr, /*allow_exceptions=*/false)};
  if (const auto found = checked.find("quantization_config"); found != checked.end())
    config.quantization = *found;
  config.json.erase("quantization_config");
  ASSIGN_OR_RETURN(const std::string generation, ckpt::ReadGenerationConfig(directory));
  ASSIGN_OR_RETURN(config.model, ckpt::ParseModelConfig(config.json.dump(), generation));
  return config;
}

std::string QuantMethod(const nlohmann::json& quantization) {
  if (!quantization.is_object()) return "";
  const auto method = quantization.find("quant_method");
  return method != quantization.end() && method->is_string() ? method->get<std::string>() : "";
}

class Importer {
 public:
  Importer(const ImportOptions& options, SourceConfig config, ForeignTensors tensors)
      : options_(options), config_(std::move(config)), tensors_(std::move(tensors)) {}

  absl::Status Run();

 private:
  absl::Status OpenSource();
  absl::Status CheckBiases() const;
  std::string ConfigJson() const;
  absl::Status WriteTensors(ckpt::SafetensorsWriter& writer);
  absl::Status WriteFloats(ckpt::SafetensorsWriter& writer, const std::string& source,
                           const std::string& name, int64_t elements);
  absl::Status WriteNorm(ckpt::SafetensorsWriter& writer, const std::string& name);
  absl::Status WriteQuantized(ckpt::SafetensorsWriter& writer, const ckpt::LinearSpec& linear);

  const ImportOptions& options_;
  const SourceConfig config_;
  const ForeignTensors tensors_;
  std::optional<ForeignTensors> scales_;
  std::unique_ptr<LinearSource> source_;
  ImportFormat format_ = ImportFormat::kAuto;
};

absl::Status Importer::OpenSource() {
  const std::vector<ckpt::LinearSpec> linears = ckpt::LayerLinears(config_.model, 0);
  const std::string scales =
      options_.scales.empty() ? options_.model + "/scale.pt" : options_.scales;
  format_ = options_.format;
  if (format_ == ImportFormat::kAuto) {
    std::error_code error;
    if (QuantMethod(config_.quantization) == "compressed-tensors") {
      format_ = ImportFormat::kCompressedTensors;
    } else if (!tensors_.Has(linears.front().name + ".qweight") &&
               std::filesystem::exists(scales, error)) {
      format_ = ImportFormat::kDeepCompressor;
    } else {
      format_ = ImportFormat::kQserve;
    }
  }
  switch (format_) {
    case ImportFormat::kDeepCompressor: {
      ASSIGN_OR_RETURN(scales_, ForeignTensors::OpenTorch(scales));
      ASSIGN_OR_RETURN(source_, OpenDeepCompressor(tensors_, *scales_, linears.front()));
      return absl::OkStatus();
    }
    case ImportFormat::kCompressedTensors: {
      if (!config_.quantization.is_object())
        return absl::InvalidArgumentError("config.json has no quantization_config");
      ASSIGN_OR_RETURN(source_, OpenCompressedTensors(tensors_, config_.quantization));
      return absl::OkStatus();
    }
    default: {
      ASSIGN_OR_RETURN(source_, OpenQserve(tensors_, linears, options_.column_order));
      return absl::OkStatus();
    }
  }
}

// A bias that the configuration does not know would be left behind.
absl::Status Importer::CheckBiases() const {
  for (int64_t layer = 0; layer < config_.model.layers; ++layer) {
    for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config_.model, layer)) {
      if (linear.bias || !tensors_.Has(linear.name + ".bias")) continue;
      return absl::InvalidArgumentError(
          fmt::format("tensor {}.bias is there, but {} with this config.json has no such bias",
                      linear.name, config_.model.architecture));
    }
  }
  return absl::OkStatus();
}

std::string Importer::ConfigJson() const {
  Json json = config_.json;
  json["tie_word_embeddings"] = false;
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = "float16";
  json["quantization_config"] = ckpt::QuantizationObject(source_->scheme(), /*kv_bits=*/4);
  return json.dump(2) + "\n";
}

// In fp16: exact for fp16 sources, rounded to nearest even for wider ones.
absl::Status Importer::WriteFloats(ckpt::SafetensorsWriter& writer, const std::string& source,
                                   const std::string& name, int64_t elements) {
  ASSIGN_OR_RETURN(const std::vector<float> values, tensors_.ReadFloats(source, elements));
  std::vector<uint16_t> halves;
  halves.reserve(values.size());
  for (const float value : values) {
    halves.push_back(kernels::FloatToHalf(value));
    if (!std::isfinite(kernels::HalfToFloat(halves.back())))
      return absl::InvalidArgumentError(
          fmt::format("tensor {}: {} does not fit fp16", source, value));
  }
  return writer.AppendSpan(name, std::span<const uint16_t>(halves));
}

absl::Status Importer::WriteNorm(ckpt::SafetensorsWriter& writer, const std::string& name) {
  const int64_t size = config_.model.hidden_size;
  if (format_ != ImportFormat::kQserve || options_.norm_gains == NormGains::kKeep)
    return WriteFloats(writer, name, name, size);
  // Where it is missing it is 1, as its own loader has it.
  if (options_.norm_gains == NormGains::kRefuse && tensors_.Has(name)) {
    ASSIGN_OR_RETURN(const std::vector<float> gains, tensors_.ReadFloats(name, size));
    for (const float gain : gains) {
      if (std::abs(gain - 1) < kGainTolerance) continue;
      return absl::InvalidArgumentError(fmt::format(
          "tensor {} has a gain of {}, and QServe takes gains for 1 whatever the file says: say "
          "--norm-gains ones to do as it does, or keep to apply them",
          name, gain));
    }
  }
  const std::vector<uint16_t> ones(static_cast<size_t>(size), kernels::FloatToHalf(1));
  return writer.AppendSpan(name, std::span<const uint16_t>(ones));
}

absl::Status Importer::WriteQuantized(ckpt::SafetensorsWriter& writer,
                                      const ckpt::LinearSpec& linear) {
  ASSIGN_OR_RETURN(kernels::LinearWeight weight, source_->Read(linear));
  if (linear.bias) {
    ASSIGN_OR_RETURN(weight.bias, tensors_.ReadFloats(linear.name + ".bias", linear.n));
    for (float& value : weight.bias) value = kernels::HalfToFloat(kernels::FloatToHalf(value));
  }
  const kernels::StatusOr<kernels::QServeTensors> packed = kernels::PackQServe(weight);
  if (!packed.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", linear.name, packed.status().message()));
  }
  return WriteLinear(writer, linear.name, *packed);
}

absl::Status Importer::WriteTensors(ckpt::SafetensorsWriter& writer) {
  const ckpt::ModelConfig& model = config_.model;
  const int64_t vocabulary = model.vocab_size * model.hidden_size;
  Progress progress("imported layers:", model.layers, options_.terminal);
  RETURN_IF_ERROR(WriteFloats(writer, ckpt::kEmbeddingTensor, ckpt::kEmbeddingTensor, vocabulary));
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    RETURN_IF_ERROR(WriteNorm(writer, block + "input_layernorm.weight"));
    RETURN_IF_ERROR(WriteNorm(writer, block + "post_attention_layernorm.weight"));
    for (const char* name : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
      if (model.qk_norm)
        RETURN_IF_ERROR(WriteFloats(writer, block + name, block + name, model.head_dim));
    }
    for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(model, layer)) {
      if (options_.interrupted != nullptr && *options_.interrupted)
        return absl::CancelledError("interrupted, nothing was written");
      RETURN_IF_ERROR(WriteQuantized(writer, linear));
    }
    progress.Step(layer + 1);
  }
  RETURN_IF_ERROR(WriteNorm(writer, ckpt::kFinalNormTensor));
  const bool own_head = tensors_.Has(ckpt::kHeadTensor);
  if (!own_head && !model.tie_word_embeddings)
    return absl::InvalidArgumentError(fmt::format("tensor {} is missing", ckpt::kHeadTensor));
  return WriteFloats(writer, own_head ? ckpt::kHeadTensor : ckpt::kEmbeddingTensor,
                     ckpt::kHeadTensor, vocabulary);
}

absl::Status Importer::Run() {
  RETURN_IF_ERROR(OpenSource());
  RETURN_IF_ERROR(CheckBiases());
  const int64_t columns = source_->scheme() == ckpt::Scheme::kQoqGroup128 ? 128 : 32;
  for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config_.model, 0)) {
    if (linear.n % 32 == 0 && linear.k % columns == 0) continue;
    return absl::InvalidArgumentError(
        fmt::format("{} is {} x {}: QoQ stores multiples of 32 rows and {} columns", linear.name,
                    linear.n, linear.k, columns));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> output,
                   ckpt::OutputDirectory::Create(options_.output));
  ckpt::SafetensorsWriter writer(*output, QoqTensors(config_.model, source_->scheme()),
                                 options_.max_shard_bytes);
  RETURN_IF_ERROR(WriteTensors(writer));
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(output->WriteFile("config.json", ConfigJson()));
  RETURN_IF_ERROR(CopyModelFiles(options_.base.empty() ? options_.model : options_.base, *output));
  return output->Commit();
}

}  // namespace

absl::StatusOr<ImportFormat> ParseImportFormat(std::string_view text) {
  return Choose<ImportFormat>(text, {{"auto", ImportFormat::kAuto},
                                     {"qserve", ImportFormat::kQserve},
                                     {"deepcompressor", ImportFormat::kDeepCompressor},
                                     {"compressed-tensors", ImportFormat::kCompressedTensors}});
}

absl::StatusOr<ColumnOrder> ParseColumnOrder(std::string_view text) {
  return Choose<ColumnOrder>(text, {{"auto", ColumnOrder::kAuto},
                                    {"qserve", ColumnOrder::kQserve},
                                    {"deepcompressor", ColumnOrder::kDeepCompressor}});
}

absl::StatusOr<NormGains> ParseNormGains(std::string_view text) {
  return Choose<NormGains>(
      text,
      {{"refuse", NormGains::kRefuse}, {"ones", NormGains::kOnes}, {"keep", NormGains::kKeep}});
}

absl::Status ImportModel(const ImportOptions& options) {
  ASSIGN_OR_RETURN(SourceConfig config,
                   ReadConfig(options.base.empty() ? options.model : options.base));
  ASSIGN_OR_RETURN(ForeignTensors tensors, ForeignTensors::OpenDirectory(options.model));
  return Importer(options, std::move(config), std::move(tensors)).Run();
}

}  // namespace qserve::quantizer
