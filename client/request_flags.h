// Flags that say what to generate, shared by `generate` and `chat`, and the message made of them.
#pragma once

#include <chrono>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cli/options.h"
#include "qserve/v1/inference.pb.h"

namespace qserve::client {

// Unset scalars are left to the server (the model's generation_config.json).
struct RequestFlags {
  std::string address = "127.0.0.1:50050";
  std::string model;
  double timeout = 0;  // seconds for an answer, 0: none
  std::optional<int32_t> max_tokens, min_tokens;
  std::optional<float> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::string session_id;
};

void DeclareRequest(cli::Options& options, RequestFlags& flags);

// 0: none.
std::chrono::milliseconds AnswerTimeout(const RequestFlags& flags);

// Everything but model and prompt. InvalidArgument for what the wire cannot carry; ranges are the
// server's to judge, who names every violation.
absl::StatusOr<v1::GenerationSpec> MakeSpec(const RequestFlags& flags);

// "1,2,3" with spaces allowed; InvalidArgument for anything else.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text);

// All of `in`; InvalidArgument if that is more than a server takes, or no UTF-8.
absl::StatusOr<std::string> ReadPrompt(std::istream& in);

// InvalidArgument naming `what` unless `text` is UTF-8.
absl::Status CheckUtf8(const std::string& what, const std::string& text);

}  // namespace qserve::client
