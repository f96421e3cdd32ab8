#include "worker/serve/generation.h"

#include <algorithm>
#include <chrono>

#include "common/log.h"
#include "common/rpc/errors.h"

namespace qserve::worker::serve {
namespace {

void SetDuration(Duration from, google::protobuf::Duration& to) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(from);
  to.set_seconds(seconds.count());
  to.set_nanos(static_cast<int32_t>((from - seconds).count()));
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case engine::FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void SetMatchedStop(const OutputDelta& delta, v1::MatchedStop& out) {
  if (!delta.matched_stop.empty()) {
    out.set_text(delta.matched_stop);
  } else if (delta.matched_stop_id >= 0) {
    out.set_token_id(delta.matched_stop_id);
  }
}

}  // namespace

Generation::Generation(const ServedModel& model, engine::Engine& engine, ParsedRequest request)
    : model_(model),
      engine_(engine),
      id_(engine.NextRequestId()),
      request_id_(std::move(request.request_id)),
      seed_(request.engine.sampling.seed),
      queue_deadline_(request.engine.queue_deadline),
      options_(std::move(request.output)),
      engine_request_(std::move(request.engine)) {
  engine_request_.id = id_;
  usage_.prompt_tokens = static_cast<int32_t>(engine_request_.prompt.size());
  const auto candidates = static_cast<size_t>(engine_request_.candidates);
  ended_.resize(candidates);
  outputs_.reserve(candidates);
  for (size_t i = 0; i < candidates; ++i) {
    const bool resumed = !engine_request_.resume.empty();
    outputs_.emplace_back(model_, options_, engine_request_.prompt,
                          resumed ? std::span<const int32_t>(engine_request_.resume[i].output_ids)
                                  : std::span<const int32_t>(),
                          resumed ? options_.resumed_text_bytes[i] : 0);
    ended_[i] = resumed && engine_request_.resume[i].finished;
  }
  done_ = std::all_of(ended_.begin(), ended_.end(), [](bool ended) { return ended; });
}

void Generation::Fail(const engine::TokenEvent& event) {
  status_ = rpc::MakeError(
      rpc::ToGrpcCode(event.error.code()), std::string(event.error.message()),
      {.reason = event.error.code() == absl::StatusCode::kUnavailable ? rpc::kReplicaFailed
                                                                      : rpc::kInternal,
       .request_id = request_id_});
}

void Generation::Consume(const std::vector<engine::TokenEvent>& events) {
  for (const engine::TokenEvent& event : events) {
    if (failed()) return;
    if (!event.error.ok()) {
      Fail(event);
      continue;
    }
    NoteUsage(event.usage);
    // It never started: a server-side time-out, not the client's deadline.
    if (event.finish == engine::FinishReason::kDeadline &&
        event.usage.time_to_first_token == Duration::zero() && queue_deadline_ != kNever &&
        !first_chunk_sent()) {
      status_ = rpc::MakeError(grpc::StatusCode::RESOURCE_EXHAUSTED,
                               "the request did not start within max_queue_wait",
                               {.reason = rpc::kQueueTimeout,
                                .retry_delay = std::chrono::milliseconds(1000),
                                .request_id = request_id_});
      continue;
    }
    CandidateOutput& output = outputs_[static_cast<size_t>(event.candidate)];
    const bool was_finished = output.finished();
    if (const absl::Status status = output.Push(event); !status.ok()) {
      LOG_ERROR("request {}: detokenization failed: {}", request_id_, status.ToString());
      status_ = rpc::MakeError(grpc::StatusCode::INTERNAL, "detokenization failed",
                               {.reason = rpc::kInternal, .request_id = request_id_});
      engine_.Cancel(id_);
    }
    if (!was_finished && output.stop_matched() && event.finish == engine::FinishReason::kNone) {
      engine_.Cancel(id_, event.candidate, engine::FinishReason::kStop);
    }
  }
}

void Generation::NoteUsage(const engine::Usage& usage) {
  // The first candidate to start tells when the request did.
  if (usage_.time_to_first_token != Duration::zero()) return;
  usage_.cached_tokens = usage.cached_tokens;
  usage_.queue_time = usage.queue_time;
  usage_.time_to_first_token = usage.time_to_first_token;
}

void Generation::CutShort() {
  if (failed() || complete()) return;
  rpc::ErrorDetails details = {.reason = rpc::kDraining,
                               .retry_delay = std::chrono::milliseconds(1000),
                               .request_id = request_id_};
  if (first_chunk_sent()) details.metadata = {{"tokens_emitted", std::to_string(tokens_sent_)}};
  status_ = rpc::MakeError(grpc::StatusCode::UNAVAILABLE,
                           "this replica shuts down before the request is finished", details);
  engine_.Cancel(id_);
}

bool Generation::complete() const {
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (!ended_[i] && !outputs_[i].finished()) return false;
  }
  return true;
}

bool Generation::Next(v1::StreamGenerateResponse& chunk) {
  if (done_ || failed()) return false;
  for (size_t step = 0; step < outputs_.size(); ++step) {
    const size_t candidate = (next_candidate_ + step) % outputs_.size();
    if (ended_[candidate]) continue;
    OutputDelta delta = outputs_[candidate].Take();
    if (delta.empty()) continue;
    next_candidate_ = (candidate + 1) % outputs_.size();
    FillChunk(candidate, std::move(delta), chunk);
    return true;
  }
  return false;
}

void Generation::FillChunk(size_t candidate, OutputDelta delta, v1::StreamGenerateResponse& chunk) {
  chunk.Clear();
  chunk.set_candidate_index(static_cast<int32_t>(candidate));
  chunk.set_sequence_number(++sequence_number_);
  if (sequence_number_ == 1) {
    v1::StreamInfo& info = *chunk.mutable_info();
    info.set_request_id(request_id_);
    info.set_seed(seed_);
    info.set_model(model_.name);
    info.set_numerics_id(model_.numerics_id);
  }
  chunk.set_text_delta(std::move(delta.text));
  tokens_sent_ += static_cast<int64_t>(delta.tokens.size());
  for (const plan::SampledToken& token : delta.tokens) {
    chunk.add_token_ids(token.id);
    if (options_.logprobs) FillLogprobs(token, *chunk.add_logprobs());
  }
  if (delta.finish == engine::FinishReason::kNone) return;
  chunk.set_finish_reason(ToProto(delta.finish));
  if (delta.finish == engine::FinishReason::kStop)
    SetMatchedStop(delta, *chunk.mutable_matched_stop());
  ended_[candidate] = true;
  done_ = std::all_of(ended_.begin(), ended_.end(), [](bool ended) { return ended; });
  if (done_) FillUsage(*chunk.mutable_usage());
}

void Generation::FillLogprobs(const plan::SampledToken& token, v1::PositionLogprobs& out) const {
  const auto fill = [this](int32_t id, float logprob, v1::TokenLogprob& entry) {
    entry.set_token_id(id);
    entry.set_logprob(logprob);
    if (model_.tokenizer == nullptr) return;
    const int32_t ids[] = {id};
    if (auto text = model_.tokenizer->Decode(ids, false); text.ok()) entry.set_text(*text);
  };
  fill(token.id, token.logprob, *out.mutable_token());
  for (const plan::TokenLogprob& top : token.top) fill(top.id, top.logprob, *out.add_top());
}

void Generation::FillUsage(v1::Usage& usage) const {
  int32_t output_tokens = 0;
  for (const CandidateOutput& output : outputs_) output_tokens += output.output_tokens();
  usage.set_prompt_tokens(usage_.prompt_tokens);
  usage.set_output_tokens(output_tokens);
  usage.set_cached_tokens(usage_.cached_tokens);
  SetDuration(usage_.queue_time, *usage.mutable_queue_time());
  SetDuration(usage_.time_to_first_token, *usage.mutable_time_to_first_token());
}

void Generation::FillResponse(v1::GenerateResponse& response) {
  response.set_request_id(request_id_);
  response.set_seed(seed_);
  response.set_model(model_.name);
  response.set_numerics_id(model_.numerics_id);
  for (size_t i = 0; i < outputs_.size(); ++i)
    response.add_candidates()->set_index(static_cast<int32_t>(i));
  v1::StreamGenerateResponse chunk;
  while (Next(chunk)) {
    v1::Candidate& candidate = *response.mutable_candidates(chunk.candidate_index());
    candidate.mutable_text()->append(chunk.text_delta());
    candidate.mutable_token_ids()->MergeFrom(chunk.token_ids());
    candidate.mutable_logprobs()->MergeFrom(chunk.logprobs());
    if (chunk.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) continue;
    candidate.set_finish_reason(chunk.finish_reason());
    if (chunk.has_matched_stop()) *candidate.mutable_matched_stop() = chunk.matched_stop();
    if (chunk.has_usage()) *response.mutable_usage() = chunk.usage();
  }
}

}  // namespace qserve::worker::serve
