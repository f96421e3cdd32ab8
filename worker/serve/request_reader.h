// From a message of the public API to an engine request: presence, ranges, limits, defaults, chat
// template, tokenization. Every violation is named, not only the first. Pure but for the seed it
// draws; any thread, never the engine's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "qserve/v1/inference.pb.h"
#include "worker/engine/request.h"
#include "worker/serve/served_model.h"

namespace qserve::worker::serve {

// Limits of the public API (docs/API.md states them).
inline constexpr int kMaxCandidates = 16;
inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int kMaxStopIds = 64;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxChatMessages = 1024;

// What the edge itself needs to remember of a request.
struct OutputOptions {
  std::vector<std::string> stop;
  bool skip_special_tokens = true;
  bool logprobs = false;
  std::vector<int64_t> resumed_text_bytes;  // per candidate, empty without resume
};

struct ParsedRequest {
  engine::EngineRequest engine;  // id and channel are left to the caller
  OutputOptions output;
  std::string request_id;  // given or drawn
};

struct ReadResult {
  grpc::Status status;  // OK: `request` is filled
  ParsedRequest request;
};

// `deadline`: when the client's call ends, kNever without one.
ReadResult ReadGeneration(const v1::GenerationSpec& spec, const ServedModel& model, TimePoint now,
                          TimePoint deadline);

// Token ids of a prompt as a generation would see them; `field` is its path for error messages.
grpc::Status ReadPrompt(const v1::Prompt& prompt, const std::string& field,
                        const ServedModel& model, std::vector<int32_t>& ids);

// NOT_FOUND MODEL_NOT_FOUND unless `name` is the served one; INVALID_ARGUMENT for an empty name.
grpc::Status CheckModelName(const std::string& name, const std::string& field,
                            const ServedModel& model);

}  // namespace qserve::worker::serve
