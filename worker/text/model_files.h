// The small JSON files beside a tokenizer, read with size limits; nothing in them is ever run. Used
// by Tokenizer and ChatTemplate while loading, on one thread.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace qserve::worker::text {

// A file of the model directory; nullopt when it is not there, an error when it is but cannot be
// read or is too large.
absl::StatusOr<std::optional<std::string>> ReadModelFile(const std::string& model_dir,
                                                         const std::string& name, size_t max_bytes);

// What tokenizer_config.json and special_tokens_map.json say; each is an empty object when its file
// is absent.
struct TokenizerConfig {
  nlohmann::json config;
  nlohmann::json special_tokens_map;

  // The text of a named token such as "bos_token"; nullopt when neither file gives one.
  // tokenizer_config.json wins.
  std::optional<std::string> TokenText(const std::string& name) const;
};

// InvalidArgument when a file is not a JSON object or nests deeper than any real one.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& model_dir);

}  // namespace qserve::worker::text
