#include "client/answer.h"

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::client {
namespace {

using Json = nlohmann::ordered_json;

// The API's own limit: a server that names more candidates is not to be believed.
constexpr int32_t kMaxCandidates = 16;

double ToSeconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + static_cast<double>(duration.nanos()) * 1e-9;
}

Json ToJson(const v1::TokenLogprob& token) {
  return {{"token_id", token.token_id()}, {"logprob", token.logprob()}, {"text", token.text()}};
}

Json ToJson(const v1::Candidate& candidate) {
  Json json = {{"text", candidate.text()},
               {"token_ids", Json::array()},
               {"finish_reason", FinishName(candidate.finish_reason())}};
  for (const int32_t id : candidate.token_ids()) json["token_ids"].push_back(id);
  switch (candidate.matched_stop().matched_case()) {
    case v1::MatchedStop::kText:
      json["matched_stop"] = candidate.matched_stop().text();
      break;
    case v1::MatchedStop::kTokenId:
      json["matched_stop"] = candidate.matched_stop().token_id();
      break;
    case v1::MatchedStop::MATCHED_NOT_SET:
      break;
  }
  for (const v1::PositionLogprobs& position : candidate.logprobs()) {
    Json entry = ToJson(position.token());
    entry["top"] = Json::array();
    for (const v1::TokenLogprob& top : position.top()) entry["top"].push_back(ToJson(top));
    json["logprobs"].push_back(std::move(entry));
  }
  return json;
}

Json ToJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"output_tokens", usage.output_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"queue_seconds", ToSeconds(usage.queue_time())},
          {"time_to_first_token_seconds", ToSeconds(usage.time_to_first_token())}};
}

}  // namespace

std::string FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "STOP";
    case v1::FINISH_REASON_LENGTH:
      return "LENGTH";
    case v1::FINISH_REASON_CANCELLED:
      return "CANCELLED";
    case v1::FINISH_REASON_DEADLINE:
      return "DEADLINE";
    default:
      return "UNKNOWN";
  }
}

absl::Status Answer::Add(const v1::StreamGenerateResponse& chunk, Time now) {
  if (chunk.sequence_number() != sequence_number_ + 1) {
    return absl::DataLossError(fmt::format("the stream has chunk {} where {} was due",
                                           chunk.sequence_number(), sequence_number_ + 1));
  }
  sequence_number_ = chunk.sequence_number();
  const int32_t index = chunk.candidate_index();
  if (index < 0 || index >= kMaxCandidates)
    return absl::DataLossError(fmt::format("the stream speaks of candidate {}", index));
  while (candidates_.size() <= static_cast<size_t>(index)) {
    candidates_.emplace_back().set_index(static_cast<int32_t>(candidates_.size()) - 1);
  }
  v1::Candidate& candidate = candidates_[static_cast<size_t>(index)];
  if (candidate.finish_reason() != v1::FINISH_REASON_UNSPECIFIED)
    return absl::DataLossError(fmt::format("candidate {} goes on after its end", index));
  last_chunk_ = now;
  if (chunk.token_ids_size() > 0 && !first_token_) first_token_ = now;
  candidate.mutable_text()->append(chunk.text_delta());
  candidate.mutable_token_ids()->MergeFrom(chunk.token_ids());
  candidate.mutable_logprobs()->MergeFrom(chunk.logprobs());
  candidate.set_finish_reason(chunk.finish_reason());
  if (chunk.has_matched_stop()) *candidate.mutable_matched_stop() = chunk.matched_stop();
  if (chunk.has_info()) info_ = chunk.info();
  if (chunk.has_usage()) {
    usage_ = chunk.usage();
    has_usage_ = true;
  }
  return absl::OkStatus();
}

absl::Status Answer::Finish(int candidates) const {
  bool complete = has_usage_ && candidates_.size() == static_cast<size_t>(candidates);
  for (const v1::Candidate& candidate : candidates_)
    complete = complete && candidate.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  if (complete) return absl::OkStatus();
  return absl::DataLossError("the stream ended without an error before the answer did");
}

int64_t Answer::tokens() const {
  int64_t tokens = 0;
  for (const v1::Candidate& candidate : candidates_) tokens += candidate.token_ids_size();
  return tokens;
}

double Answer::seconds() const {
  return std::chrono::duration<double>(last_chunk_ - start_).count();
}

double Answer::seconds_to_first_token() const {
  return std::chrono::duration<double>(first_token_.value_or(last_chunk_) - start_).count();
}

std::string Answer::Summary() const {
  std::string reasons;
  for (const v1::Candidate& candidate : candidates_)
    reasons += FinishName(candidate.finish_reason()) + ", ";
  const double rate = seconds() > 0 ? static_cast<double>(tokens()) / seconds() : 0;
  return fmt::format("{}{} tokens in {:.2f} s ({:.1f} tokens/s), first token after {:.3f} s",
                     reasons, tokens(), seconds(), rate, seconds_to_first_token());
}

Json Answer::ToJson() const {
  Json json = candidates_.empty() ? Json::object() : client::ToJson(candidates_.front());
  json["usage"] = client::ToJson(usage_);
  if (candidates_.size() > 1) {
    for (const v1::Candidate& candidate : candidates_) {
      Json entry = {{"index", candidate.index()}};
      entry.update(client::ToJson(candidate));
      json["candidates"].push_back(std::move(entry));
    }
  }
  json["model"] = info_.model();
  json["request_id"] = info_.request_id();
  json["seed"] = info_.seed();
  json["numerics_id"] = info_.numerics_id();
  json["seconds"] = seconds();
  json["time_to_first_token_seconds"] = seconds_to_first_token();
  json["tokens_per_second"] = seconds() > 0 ? static_cast<double>(tokens()) / seconds() : 0;
  return json;
}

absl::Status StreamAnswer(
    Connection& connection, const v1::GenerationSpec& spec, std::chrono::milliseconds timeout,
    Answer& answer,
    const std::function<absl::Status(const v1::StreamGenerateResponse&)>& on_chunk) {
  grpc::ClientContext context;
  if (timeout.count() > 0) context.set_deadline(std::chrono::system_clock::now() + timeout);
  const Interrupt::Scope scope(connection.interrupt(), context);
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = spec;
  const auto reader = connection.inference().StreamGenerate(&context, request);
  v1::StreamGenerateResponse chunk;
  absl::Status problem;
  while (problem.ok() && reader->Read(&chunk)) {
    problem = answer.Add(chunk, std::chrono::steady_clock::now());
    if (problem.ok()) problem = on_chunk(chunk);
  }
  if (!problem.ok()) context.TryCancel();
  const grpc::Status status = reader->Finish();
  if (connection.interrupt().tripped()) return absl::CancelledError("interrupted");
  RETURN_IF_ERROR(problem);
  if (!status.ok()) return absl::UnavailableError(connection.Explain(status));
  return answer.Finish(spec.output().has_n() ? spec.output().n() : 1);
}

}  // namespace qserve::client
