#include "worker/text/model_files.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"

namespace qserve::worker::text {
namespace {

constexpr size_t kMaxConfigBytes = size_t{8} << 20;
constexpr int kMaxConfigDepth = 64;

absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& model_dir,
                                              const std::string& name) {
  ASSIGN_OR_RETURN(const std::optional<std::string> text,
                   ReadModelFile(model_dir, name, kMaxConfigBytes));
  if (!text.has_value()) return nlohmann::json::object();
  bool too_deep = false;
  // Called for every value; false leaves the value out, so a hostile depth is never built.
  const auto limit_depth = [&too_deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_deep = too_deep || depth > kMaxConfigDepth;
    return !too_deep;
  };
  nlohmann::json value = nlohmann::json::parse(*text, limit_depth, /*allow_exceptions=*/false);
  if (too_deep || !value.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        model_dir, "/", name, too_deep ? " nests too deeply" : " is not a JSON object"));
  }
  return value;
}

// A token is written as its text or as an object that holds it.
std::optional<std::string> TextOfToken(const nlohmann::json& object, const std::string& name) {
  const auto found = object.find(name);
  if (found == object.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object()) return std::nullopt;
  const auto content = found->find("content");
  if (content == found->end() || !content->is_string()) return std::nullopt;
  return content->get<std::string>();
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ReadModelFile(const std::string& model_dir,
                                                         const std::string& name,
                                                         size_t max_bytes) {
  absl::StatusOr<std::string> text = ReadSmallFile(absl::StrCat(model_dir, "/", name), max_bytes);
  if (absl::IsNotFound(text.status())) return std::optional<std::string>();
  if (!text.ok()) return text.status();
  return std::optional<std::string>(*std::move(text));
}

std::optional<std::string> TokenizerConfig::TokenText(const std::string& name) const {
  if (std::optional<std::string> text = TextOfToken(config, name); text.has_value()) return text;
  return TextOfToken(special_tokens_map, name);
}

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& model_dir) {
  TokenizerConfig files;
  ASSIGN_OR_RETURN(files.config, ReadJsonObject(model_dir, "tokenizer_config.json"));
  ASSIGN_OR_RETURN(files.special_tokens_map, ReadJsonObject(model_dir, "special_tokens_map.json"));
  return files;
}

}  // namespace qserve::worker::text
