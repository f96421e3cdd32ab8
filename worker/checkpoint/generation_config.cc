// See generation_config.h.
#include "worker/checkpoint/generation_config.h"

#include <fmt/format.h>

#include "common/mapped_file.h"
#include "common/status_macros.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr const char* kName = "generation_config.json";
constexpr size_t kMaxTokenIds = 1024;

std::optional<float> Narrow(std::optional<double> value) {
  if (!value) return std::nullopt;
  return static_cast<float>(*value);
}

}  // namespace

std::vector<int32_t> ParseTokenIds(Fields& fields, const char* key, int64_t vocab_size) {
  const nlohmann::json* value = fields.Find(key);
  if (value == nullptr) return {};
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > kMaxTokenIds) {
    fields.Fail(fmt::format("{} has more than {} entries", key, kMaxTokenIds));
    return {};
  }
  std::vector<int32_t> ids;
  for (const nlohmann::json& entry : list) {
    const bool valid =
        entry.is_number_unsigned() && entry.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!valid) {
      fields.Fail(fmt::format("{} must be one or several token ids below vocab_size ({})", key,
                              vocab_size));
      return {};
    }
    ids.push_back(entry.get<int32_t>());
  }
  return ids;
}

absl::StatusOr<std::string> ReadGenerationConfig(const std::string& directory) {
  absl::StatusOr<std::string> text =
      ReadSmallFile(fmt::format("{}/{}", directory, kName), kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

absl::StatusOr<GenerationTokens> ParseGenerationTokens(const std::string& json,
                                                       int64_t vocab_size) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json, kName));
  Fields fields(object, kName);
  GenerationTokens tokens;
  tokens.eos = ParseTokenIds(fields, "eos_token_id", vocab_size);
  if (const std::vector<int32_t> bos = ParseTokenIds(fields, "bos_token_id", vocab_size);
      !bos.empty()) {
    tokens.bos = bos.front();
  }
  RETURN_IF_ERROR(fields.status());
  return tokens;
}

absl::StatusOr<GenerationDefaults> ParseGenerationDefaults(const std::string& json) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json, kName));
  Fields fields(object, kName);
  GenerationDefaults defaults;
  defaults.temperature = Narrow(fields.Number("temperature", 0.0, 100.0));
  if (!fields.Bool("do_sample").value_or(true)) defaults.temperature = 0.0f;
  defaults.top_p = Narrow(fields.Number("top_p", 0.0, 1.0));
  defaults.min_p = Narrow(fields.Number("min_p", 0.0, 1.0));
  defaults.repetition_penalty = Narrow(fields.Number("repetition_penalty", 1e-3, 1e3));
  if (const auto top_k = fields.Integer("top_k", -1, INT32_MAX)) {
    defaults.top_k =
        *top_k < 0 ? 0 : static_cast<int32_t>(*top_k);  // -1 is another spelling of "off"
  }
  if (defaults.top_p && *defaults.top_p <= 0.0f) fields.Fail("top_p must be greater than 0");
  RETURN_IF_ERROR(fields.status());
  return defaults;
}

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string text, ReadGenerationConfig(directory));
  if (text.empty()) return GenerationDefaults();
  absl::StatusOr<GenerationDefaults> defaults = ParseGenerationDefaults(text);
  if (!defaults.ok()) {
    return absl::Status(defaults.status().code(),
                        fmt::format("{}/{}", directory, std::string(defaults.status().message())));
  }
  return defaults;
}

}  // namespace qserve::worker::checkpoint
