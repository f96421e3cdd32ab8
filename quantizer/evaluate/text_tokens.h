// The text that a model is measured on, as token ids. Called by eval_command.cc once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::quantizer {

inline constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Ids of the file `path` by the tokenizer of the directory `model`, the tokenizer's own special
// tokens (a beginning of text) added once, at most `max_tokens` of them (0: all). A file whose name
// ends in .jsonl has one object a line; its texts, member "text", are joined by two newlines, as
// the WikiText sets are for GPTQ. Errors: those of the tokenizer; NotFound; InvalidArgument with
// the line of a bad object, or when nothing is left.
absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, const std::string& model,
                                                int64_t max_tokens);

}  // namespace qserve::quantizer
