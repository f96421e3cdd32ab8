// One streamed generation as the client sees it: chunks put together, checked to be complete, and
// timed. Used by the commands, on their thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/connection.h"
#include "nlohmann/json.hpp"
#include "qserve/v1/inference.pb.h"

namespace qserve::client {

// What has arrived so far.
class Answer {
 public:
  using Time = std::chrono::steady_clock::time_point;

  explicit Answer(Time start) : start_(start) {}

  // Takes the next chunk, which arrived at `now`. DataLoss when one is missing, doubled or
  // contradicts another.
  absl::Status Add(const v1::StreamGenerateResponse& chunk, Time now);
  // After the last chunk. DataLoss unless all candidates and the usage have come.
  absl::Status Finish(int candidates) const;

  const std::vector<v1::Candidate>& candidates() const { return candidates_; }
  const v1::Usage& usage() const { return usage_; }

  // "LENGTH, 64 tokens in 1.52 s (42.1 tokens/s), first token after 0.08 s".
  std::string Summary() const;
  // One object: of the first candidate at the top, of all under "candidates" if there are several.
  nlohmann::ordered_json ToJson() const;

 private:
  int64_t tokens() const;
  double seconds() const;
  double seconds_to_first_token() const;

  const Time start_;
  std::optional<Time> first_token_;
  Time last_chunk_ = start_;
  int64_t sequence_number_ = 0;
  v1::StreamInfo info_;
  v1::Usage usage_;
  bool has_usage_ = false;
  std::vector<v1::Candidate> candidates_;
};

// "STOP" and so on.
std::string FinishName(v1::FinishReason reason);

// Streams `spec` into `answer`; `on_chunk` sees each chunk once it has been checked, and may end
// the stream by an error. `timeout` 0: none. Errors are ready to be shown; Cancelled after an
// interrupt.
absl::Status StreamAnswer(
    Connection& connection, const v1::GenerationSpec& spec, std::chrono::milliseconds timeout,
    Answer& answer, const std::function<absl::Status(const v1::StreamGenerateResponse&)>& on_chunk);

}  // namespace qserve::client
