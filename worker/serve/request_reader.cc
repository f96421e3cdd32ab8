#include "worker/serve/request_reader.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/format.h>

#include "common/entropy.h"
#include "common/hashing.h"
#include "common/rpc/errors.h"

namespace qserve::worker::serve {
namespace {

using rpc::FieldViolation;

// Collects violations and reads optional scalars with their ranges.
class Reader {
 public:
  explicit Reader(std::vector<FieldViolation>& violations) : violations_(violations) {}

  void Violate(std::string field, std::string description) {
    violations_.push_back({std::move(field), std::move(description)});
  }

  // `value` if it is a number in [low, high] (low excluded on demand); otherwise a violation and
  // `low`.
  template <class T>
  T InRange(const char* field, T value, T low, T high, bool exclude_low = false) {
    const bool inside =
        (exclude_low ? value > low : value >= low) && value <= high;  // false for NaN
    if (inside) return value;
    Violate(field,
            fmt::format("must be in {}{}, {}], got {}", exclude_low ? '(' : '[', low, high, value));
    return low;
  }

 private:
  std::vector<FieldViolation>& violations_;
};

void ReadSampling(const v1::GenerationSpec& spec, const ServedModel& model, Reader& reader,
                  plan::Sampling& out) {
  const v1::SamplingParams& in = spec.sampling();
  const checkpoint::GenerationDefaults& defaults = model.defaults;
  out.temperature = in.has_temperature()
                        ? reader.InRange("spec.sampling.temperature", in.temperature(), 0.0f, 2.0f)
                        : defaults.temperature.value_or(1.0f);
  out.top_p = in.has_top_p() ? reader.InRange("spec.sampling.top_p", in.top_p(), 0.0f, 1.0f, true)
                             : defaults.top_p.value_or(1.0f);
  out.top_k = in.has_top_k() ? reader.InRange("spec.sampling.top_k", in.top_k(), 0, 1 << 30)
                             : defaults.top_k.value_or(0);
  out.min_p = in.has_min_p() ? reader.InRange("spec.sampling.min_p", in.min_p(), 0.0f, 1.0f)
                             : defaults.min_p.value_or(0.0f);
  out.repetition_penalty = in.has_repetition_penalty()
                               ? reader.InRange("spec.sampling.repetition_penalty",
                                                in.repetition_penalty(), 0.0f, 10.0f, true)
                               : defaults.repetition_penalty.value_or(1.0f);
  out.presence_penalty =
      reader.InRange("spec.sampling.presence_penalty", in.presence_penalty(), -2.0f, 2.0f);
  out.frequency_penalty =
      reader.InRange("spec.sampling.frequency_penalty", in.frequency_penalty(), -2.0f, 2.0f);
  if (in.logit_bias_size() > kMaxLogitBias) {
    reader.Violate("spec.sampling.logit_bias", fmt::format("has {} entries, at most {} are allowed",
                                                           in.logit_bias_size(), kMaxLogitBias));
  } else {
    for (const auto& [id, bias] : in.logit_bias()) {
      if (id < 0 || id >= model.vocab_size) {
        reader.Violate(
            "spec.sampling.logit_bias",
            fmt::format("names token {}, outside the vocabulary of {}", id, model.vocab_size));
      } else if (!(bias >= -100.0f && bias <= 100.0f)) {
        reader.Violate("spec.sampling.logit_bias",
                       fmt::format("of token {} must be in [-100, 100], got {}", id, bias));
      } else {
        out.logit_bias.emplace_back(id, bias);
      }
    }
    // A map has no order of its own; the plan must not depend on it.
    std::sort(out.logit_bias.begin(), out.logit_bias.end());
  }
}

void ReadStopping(const v1::GenerationSpec& spec, const ServedModel& model, Reader& reader,
                  ParsedRequest& out) {
  const v1::StoppingParams& in = spec.stopping();
  if (in.has_max_tokens() && in.max_tokens() < 1) {
    reader.Violate("spec.stopping.max_tokens",
                   fmt::format("must be at least 1, got {}", in.max_tokens()));
  }
  if (in.min_tokens() < 0) {
    reader.Violate("spec.stopping.min_tokens",
                   fmt::format("must not be negative, got {}", in.min_tokens()));
  } else if (in.has_max_tokens() && in.min_tokens() > in.max_tokens()) {
    reader.Violate(
        "spec.stopping.min_tokens",
        fmt::format("must not exceed max_tokens ({}), got {}", in.max_tokens(), in.min_tokens()));
  }
  out.engine.sampling.min_tokens = in.min_tokens();
  if (in.stop_size() > kMaxStopStrings) {
    reader.Violate("spec.stopping.stop", fmt::format("has {} strings, at most {} are allowed",
                                                     in.stop_size(), kMaxStopStrings));
  } else {
    for (const std::string& stop : in.stop()) {
      if (stop.empty() || stop.size() > kMaxStopStringBytes) {
        reader.Violate("spec.stopping.stop", fmt::format("strings must have 1 to {} bytes, got {}",
                                                         kMaxStopStringBytes, stop.size()));
      }
      out.output.stop.push_back(stop);
    }
    if (in.stop_size() > 0 && model.tokenizer == nullptr) {
      reader.Violate("spec.stopping.stop", "needs a tokenizer, which this model does not have");
    }
  }
  if (in.stop_token_ids_size() > kMaxStopIds) {
    reader.Violate(
        "spec.stopping.stop_token_ids",
        fmt::format("has {} ids, at most {} are allowed", in.stop_token_ids_size(), kMaxStopIds));
  } else {
    for (const int32_t id : in.stop_token_ids()) {
      if (id < 0 || id >= model.vocab_size) {
        reader.Violate(
            "spec.stopping.stop_token_ids",
            fmt::format("names token {}, outside the vocabulary of {}", id, model.vocab_size));
      }
      out.engine.stop_ids.push_back(id);
    }
  }
  if (!in.ignore_eos()) {
    out.engine.stop_ids.insert(out.engine.stop_ids.end(), model.eos_token_ids.begin(),
                               model.eos_token_ids.end());
  }
  std::sort(out.engine.stop_ids.begin(), out.engine.stop_ids.end());
  out.engine.stop_ids.erase(std::unique(out.engine.stop_ids.begin(), out.engine.stop_ids.end()),
                            out.engine.stop_ids.end());
  if (in.min_tokens() > 0) out.engine.sampling.banned_ids = out.engine.stop_ids;
}

void ReadOutput(const v1::GenerationSpec& spec, Reader& reader, ParsedRequest& out) {
  const v1::OutputParams& in = spec.output();
  out.engine.candidates =
      in.has_n() ? reader.InRange("spec.output.n", in.n(), 1, kMaxCandidates) : 1;
  if (in.has_logprobs()) {
    out.engine.sampling.logprobs =
        reader.InRange("spec.output.logprobs", in.logprobs(), 0, kMaxLogprobs);
    out.output.logprobs = true;
  }
  out.output.skip_special_tokens = in.has_skip_special_tokens() ? in.skip_special_tokens() : true;
}

bool IsPrintableAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

void ReadIdentity(const v1::GenerationSpec& spec, Reader& reader, ParsedRequest& out) {
  if (spec.request_id().size() > kMaxRequestIdBytes || !IsPrintableAscii(spec.request_id())) {
    reader.Violate("spec.request_id",
                   fmt::format("must be at most {} printable ASCII characters without spaces",
                               kMaxRequestIdBytes));
  }
  if (spec.session_id().size() > kMaxRequestIdBytes) {
    reader.Violate("spec.session_id", fmt::format("must be at most {} bytes, got {}",
                                                  kMaxRequestIdBytes, spec.session_id().size()));
  }
  if (spec.cache_salt().size() > kMaxRequestIdBytes) {
    reader.Violate("spec.cache_salt", fmt::format("must be at most {} bytes, got {}",
                                                  kMaxRequestIdBytes, spec.cache_salt().size()));
  }
  switch (spec.priority()) {
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_NORMAL:
      out.engine.priority = 0;
      break;
    case v1::PRIORITY_LOW:
      out.engine.priority = -1;
      break;
    case v1::PRIORITY_HIGH:
      out.engine.priority = 1;
      break;
    default:
      reader.Violate("spec.priority",
                     fmt::format("has the unknown value {}", static_cast<int>(spec.priority())));
  }
  if (spec.has_max_queue_wait() &&
      (spec.max_queue_wait().seconds() < 0 || spec.max_queue_wait().nanos() < 0 ||
       spec.max_queue_wait().seconds() > 365 * 86400)) {
    reader.Violate("spec.max_queue_wait", "must be between 0 and a year");
  }
  if (!spec.cache_salt().empty()) {
    out.engine.cache_salt = HashSpan(std::span<const char>(spec.cache_salt()));
  }
}

void ReadResume(const v1::GenerationSpec& spec, const ServedModel& model, Reader& reader,
                ParsedRequest& out) {
  if (!spec.has_resume()) return;
  if (spec.resume().candidates_size() != out.engine.candidates) {
    reader.Violate("spec.resume.candidates",
                   fmt::format("must have one entry for each of the {} candidates, got {}",
                               out.engine.candidates, spec.resume().candidates_size()));
    return;
  }
  if (!spec.sampling().has_seed()) reader.Violate("spec.sampling.seed", "must be given to resume");
  for (const v1::ResumeCandidate& candidate : spec.resume().candidates()) {
    if (candidate.token_ids_size() > model.max_model_len || candidate.text_bytes() < 0) {
      reader.Violate("spec.resume.candidates",
                     "has more tokens than the context, or negative text_bytes");
      return;
    }
    engine::ResumeCandidate resumed;
    for (const int32_t id : candidate.token_ids()) {
      if (id < 0 || id >= model.vocab_size) {
        reader.Violate(
            "spec.resume.candidates",
            fmt::format("names token {}, outside the vocabulary of {}", id, model.vocab_size));
        return;
      }
      resumed.output_ids.push_back(id);
    }
    resumed.finished = candidate.finished();
    out.engine.resume.push_back(std::move(resumed));
    out.output.resumed_text_bytes.push_back(candidate.text_bytes());
  }
}

// Resolves max_tokens against the context.
grpc::Status FitContext(const v1::GenerationSpec& spec, const ServedModel& model,
                        ParsedRequest& out) {
  const auto prompt_tokens = static_cast<int64_t>(out.engine.prompt.size());
  const int64_t asked = spec.stopping().has_max_tokens() ? spec.stopping().max_tokens() : 1;
  if (prompt_tokens + asked > model.max_model_len) {
    return rpc::MakeError(
        grpc::StatusCode::INVALID_ARGUMENT,
        fmt::format(
            "the prompt has {} tokens and {} are to be generated, more than the context of {}",
            prompt_tokens, asked, model.max_model_len),
        {.reason = rpc::kContextLengthExceeded,
         .metadata = {{"limit", std::to_string(model.max_model_len)},
                      {"got", std::to_string(prompt_tokens + asked)}},
         .request_id = out.request_id});
  }
  out.engine.max_tokens = static_cast<int32_t>(
      spec.stopping().has_max_tokens() ? asked : model.max_model_len - prompt_tokens);
  return grpc::Status::OK;
}

grpc::Status TextStatus(const absl::Status& status, const std::string& field) {
  if (status.code() == absl::StatusCode::kInvalidArgument ||
      status.code() == absl::StatusCode::kResourceExhausted) {
    return rpc::MakeInvalidArgument({{field, std::string(status.message())}}, "");
  }
  return rpc::MakeError(grpc::StatusCode::INTERNAL, "the tokenizer failed",
                        {.reason = rpc::kInternal});
}

// More bytes cannot fit: no token is longer than that in any vocabulary we know of.
constexpr size_t kMaxBytesPerToken = 512;

grpc::Status ReadChat(const v1::Chat& chat, const std::string& field, const ServedModel& model,
                      std::vector<int32_t>& ids) {
  if (model.tokenizer == nullptr || model.chat_template == nullptr) {
    return rpc::MakeInvalidArgument(
        {{field, "needs a chat template, which this model does not have"}}, "");
  }
  if (chat.messages().empty() || static_cast<size_t>(chat.messages_size()) > kMaxChatMessages) {
    return rpc::MakeInvalidArgument(
        {{field + ".messages", fmt::format("must have 1 to {} entries, got {}", kMaxChatMessages,
                                           chat.messages_size())}},
        "");
  }
  std::vector<text::ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    if (message.role().empty())
      return rpc::MakeInvalidArgument({{field + ".messages.role", "is required"}}, "");
    messages.push_back({message.role(), message.content()});
  }
  const bool prompt_turn = chat.has_add_generation_prompt() ? chat.add_generation_prompt() : true;
  const text::ChatOptions options = {
      .add_generation_prompt = prompt_turn,
      .variables_json = "",
      .now_unix_seconds = std::chrono::duration_cast<std::chrono::seconds>(
                              std::chrono::system_clock::now().time_since_epoch())
                              .count()};
  auto rendered = model.chat_template->RenderAndTokenize(*model.tokenizer, messages, options);
  if (!rendered.ok()) return TextStatus(rendered.status(), field);
  ids = *std::move(rendered);
  return grpc::Status::OK;
}

}  // namespace

grpc::Status CheckModelName(const std::string& name, const std::string& field,
                            const ServedModel& model) {
  if (name.empty()) return rpc::MakeInvalidArgument({{field, "is required"}}, "");
  if (name == model.name) return grpc::Status::OK;
  // The client's text is not repeated at any length.
  return rpc::MakeError(grpc::StatusCode::NOT_FOUND,
                        fmt::format("model '{}' is not served here", name.substr(0, 128)),
                        {.reason = rpc::kModelNotFound, .metadata = {{"served", model.name}}});
}

grpc::Status ReadPrompt(const v1::Prompt& prompt, const std::string& field,
                        const ServedModel& model, std::vector<int32_t>& ids) {
  switch (prompt.prompt_case()) {
    case v1::Prompt::kText: {
      if (model.tokenizer == nullptr) {
        return rpc::MakeInvalidArgument(
            {{field + ".text", "needs a tokenizer, which this model does not have"}}, "");
      }
      if (prompt.text().empty())
        return rpc::MakeInvalidArgument({{field + ".text", "is empty"}}, "");
      if (prompt.text().size() > static_cast<size_t>(model.max_model_len) * kMaxBytesPerToken) {
        return rpc::MakeError(grpc::StatusCode::INVALID_ARGUMENT,
                              "the prompt's text is far longer than the context",
                              {.reason = rpc::kContextLengthExceeded,
                               .metadata = {{"limit", std::to_string(model.max_model_len)}}});
      }
      auto encoded = model.tokenizer->Encode(prompt.text());
      if (!encoded.ok()) return TextStatus(encoded.status(), field + ".text");
      ids = *std::move(encoded);
      break;
    }
    case v1::Prompt::kTokenIds:
      for (const int32_t id : prompt.token_ids().ids()) {
        if (id < 0 || id >= model.vocab_size) {
          return rpc::MakeInvalidArgument(
              {{field + ".token_ids",
                fmt::format("names token {}, outside the vocabulary of {}", id, model.vocab_size)}},
              "");
        }
      }
      ids.assign(prompt.token_ids().ids().begin(), prompt.token_ids().ids().end());
      break;
    case v1::Prompt::kChat: {
      const grpc::Status status = ReadChat(prompt.chat(), field + ".chat", model, ids);
      if (!status.ok()) return status;
      break;
    }
    case v1::Prompt::PROMPT_NOT_SET:
      return rpc::MakeInvalidArgument({{field, "is required"}}, "");
  }
  if (ids.empty()) return rpc::MakeInvalidArgument({{field, "has no tokens"}}, "");
  return grpc::Status::OK;
}

ReadResult ReadGeneration(const v1::GenerationSpec& spec, const ServedModel& model, TimePoint now,
                          TimePoint deadline) {
  ReadResult result;
  if (result.status = CheckModelName(spec.model(), "spec.model", model); !result.status.ok())
    return result;
  ParsedRequest& out = result.request;
  std::vector<FieldViolation> violations;
  Reader reader(violations);
  ReadIdentity(spec, reader, out);
  out.request_id = spec.request_id().empty() || !violations.empty() ? DrawId() : spec.request_id();
  ReadSampling(spec, model, reader, out.engine.sampling);
  ReadStopping(spec, model, reader, out);
  ReadOutput(spec, reader, out);
  ReadResume(spec, model, reader, out);
  if (!violations.empty()) {
    result.status = rpc::MakeInvalidArgument(std::move(violations), out.request_id);
    return result;
  }
  if (spec.has_resume() && spec.resume().numerics_id() != model.numerics_id) {
    result.status = rpc::MakeError(grpc::StatusCode::FAILED_PRECONDITION,
                                   "this replica computes other bits than the one that began",
                                   {.reason = rpc::kNumericsMismatch,
                                    .metadata = {{"numerics_id", model.numerics_id}},
                                    .request_id = out.request_id});
    return result;
  }
  if (result.status = ReadPrompt(spec.prompt(), "spec.prompt", model, out.engine.prompt);
      !result.status.ok())
    return result;
  if (result.status = FitContext(spec, model, out); !result.status.ok()) return result;
  out.engine.sampling.seed =
      spec.sampling().has_seed() ? spec.sampling().seed() : model.default_seed.value_or(DrawSeed());
  out.engine.arrival = now;
  out.engine.deadline = deadline;
  if (spec.has_max_queue_wait()) {
    out.engine.queue_deadline = now + std::chrono::seconds(spec.max_queue_wait().seconds()) +
                                std::chrono::nanoseconds(spec.max_queue_wait().nanos());
  }
  return result;
}

}  // namespace qserve::worker::serve
