// See text_tokens.h.
#include "quantizer/evaluate/text_tokens.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "worker/text/tokenizer.h"

namespace qserve::quantizer {
namespace {

absl::StatusOr<std::string> JoinLines(const std::string& path, const std::string& lines) {
  std::string text;
  size_t begin = 0;
  for (int64_t number = 1; begin < lines.size(); ++number) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    const std::string line = lines.substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object() || !object.contains("text") || !object["text"].is_string()) {
      return absl::InvalidArgumentError(fmt::format(
          "{} line {}: an object with a string member \"text\" is expected", path, number));
    }
    if (!text.empty()) text += "\n\n";
    text += object["text"].get<std::string>();
  }
  return text;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, const std::string& model,
                                                int64_t max_tokens) {
  ASSIGN_OR_RETURN(std::string text, ReadSmallFile(path, kMaxTextBytes));
  if (path.ends_with(".jsonl")) {
    ASSIGN_OR_RETURN(text, JoinLines(path, text));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::text::Tokenizer> tokenizer,
                   worker::text::Tokenizer::Load(model));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                   tokenizer->Encode(text, {.parse_special = false, .max_bytes = kMaxTextBytes}));
  if (max_tokens > 0 && std::ssize(ids) > max_tokens) ids.resize(static_cast<size_t>(max_tokens));
  if (ids.size() < 2)
    return absl::InvalidArgumentError(fmt::format("{}: fewer than two tokens of text", path));
  return ids;
}

}  // namespace qserve::quantizer
