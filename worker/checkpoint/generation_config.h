// generation_config.json: the tokens that end a generation and the sampling defaults. Called by
// model_config.cc; the defaults are declared in model_config.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::worker::checkpoint {

inline constexpr size_t kMaxConfigBytes = size_t{1} << 20;

struct GenerationTokens {
  std::vector<int32_t> eos;
  std::optional<int32_t> bos;
};

// The text of `directory`'s generation_config.json, empty if there is none.
absl::StatusOr<std::string> ReadGenerationConfig(const std::string& directory);

absl::StatusOr<GenerationTokens> ParseGenerationTokens(const std::string& json, int64_t vocab_size);
absl::StatusOr<GenerationDefaults> ParseGenerationDefaults(const std::string& json);

// A token id or a list of them; each within the vocabulary.
std::vector<int32_t> ParseTokenIds(Fields& fields, const char* key, int64_t vocab_size);

}  // namespace qserve::worker::checkpoint
