#include "worker/serve/candidate_output.h"

#include <algorithm>
#include <span>
#include <utility>

#include "common/status_macros.h"

namespace qserve::worker::serve {
namespace {

// Length of the longest end of `text` that begins `stop` without completing it.
size_t PartialMatch(const std::string& text, const std::string& stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.compare(text.size() - length, length, stop, 0, length) == 0) return length;
  }
  return 0;
}

// Tokens of the prompt that the decoder sees first: enough for any merge across the border.
constexpr size_t kPrimingTokens = 8;

}  // namespace

CandidateOutput::CandidateOutput(const ServedModel& model, const OutputOptions& options,
                                 std::span<const int32_t> prompt, std::span<const int32_t> resumed,
                                 int64_t sent_text_bytes)
    : model_(model), options_(options), skip_bytes_(sent_text_bytes) {
  if (model_.tokenizer != nullptr) {
    const auto priming = prompt.last(std::min(prompt.size(), kPrimingTokens));
    // A vocabulary padded beyond the tokenizer's may give ids without text.
    decoder_ = std::make_unique<text::StreamDecoder>(
        *model_.tokenizer, priming,
        text::StreamDecoderOptions{.skip_special_tokens = options_.skip_special_tokens,
                                   .ignore_unknown_ids = true});
  }
  for (const int32_t id : resumed) {
    ++output_tokens_;
    if (decoder_ == nullptr) continue;
    // An id that does not decode adds no text, here as on the replica that began.
    if (auto text = decoder_->Push(id); text.ok()) AppendText(*text);
  }
}

absl::Status CandidateOutput::Push(const engine::TokenEvent& event) {
  if (finished()) return absl::OkStatus();
  if (event.token) {
    RETURN_IF_ERROR(PushToken(*event.token, event.finish == engine::FinishReason::kStop));
    if (stop_matched()) return absl::OkStatus();
  }
  if (event.finish == engine::FinishReason::kNone) return absl::OkStatus();
  finish_ = event.finish;
  matched_stop_id_ = event.matched_stop_id;
  if (decoder_ != nullptr) {
    ASSIGN_OR_RETURN(const std::string rest, decoder_->Flush());
    AppendText(rest);
    FindStop();
  }
  return absl::OkStatus();
}

absl::Status CandidateOutput::PushToken(const plan::SampledToken& token, bool is_stop_id) {
  ++output_tokens_;
  tokens_.push_back(token);
  // The token that ends a text is not part of it.
  if (decoder_ == nullptr || is_stop_id) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, decoder_->Push(token.id));
  if (!text.empty()) {
    AppendText(text);
    FindStop();
  }
  return absl::OkStatus();
}

void CandidateOutput::AppendText(const std::string& text) {
  const auto skipped =
      static_cast<size_t>(std::min<int64_t>(skip_bytes_, static_cast<int64_t>(text.size())));
  skip_bytes_ -= static_cast<int64_t>(skipped);
  pending_.append(text, skipped);
}

void CandidateOutput::FindStop() {
  size_t first = std::string::npos;
  for (const std::string& stop : options_.stop) {
    const size_t found = pending_.find(stop);
    if (found < first) {
      first = found;
      matched_stop_ = stop;
    }
  }
  if (first == std::string::npos) return;
  pending_.resize(first);
  finish_ = engine::FinishReason::kStop;
  matched_stop_id_ = -1;
}

OutputDelta CandidateOutput::Take() {
  OutputDelta delta;
  delta.tokens = std::exchange(tokens_, {});
  size_t held_back = 0;
  if (!finished()) {
    for (const std::string& stop : options_.stop)
      held_back = std::max(held_back, PartialMatch(pending_, stop));
  }
  // Complete characters only: a stop string may begin in the middle of one.
  size_t certain = pending_.size() - held_back;
  while (certain > 0 && certain < pending_.size() &&
         (static_cast<unsigned char>(pending_[certain]) & 0xC0) == 0x80)
    --certain;
  delta.text = pending_.substr(0, certain);
  pending_.erase(0, certain);
  if (finished() && !finish_taken_) {
    finish_taken_ = true;
    delta.finish = finish_;
    delta.matched_stop = matched_stop_;
    delta.matched_stop_id = matched_stop_id_;
  }
  return delta;
}

}  // namespace qserve::worker::serve
