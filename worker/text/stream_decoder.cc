#include "worker/text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace qserve::worker::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
// An unfinished sequence has at most three bytes, and shows as at most one U+FFFD for each.
constexpr int kMaxHeldCharacters = 3;
// A character has at most four bytes, so after this many ids text that does not fit what was sent
// will never fit.
constexpr size_t kMaxHeldIds = 4;
// Bounds the work per id for ids that never form a character.
constexpr size_t kMaxWindow = 256;
constexpr size_t kContextIds = 8;
constexpr size_t kMaxContextIds = 64;

// `text` without what may be an unfinished sequence at its end.
std::string_view Stable(std::string_view text) {
  for (int held = 0; held < kMaxHeldCharacters && text.ends_with(kReplacement); ++held) {
    text.remove_suffix(kReplacement.size());
  }
  return text;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids,
                             StreamDecoderOptions options)
    : tokenizer_(tokenizer), options_(options) {
  TakeContext(prompt_ids);
}

// Takes as many of the last ids as show some text that does not begin inside a character.
void StreamDecoder::TakeContext(std::span<const int32_t> prompt_ids) {
  const auto has_text = [this](int32_t id) {
    return tokenizer_.IdToToken(id).has_value() &&
           !(options_.skip_special_tokens && tokenizer_.IsSpecial(id));
  };
  std::vector<int32_t> last;  // newest first
  for (auto id = prompt_ids.rbegin(); id != prompt_ids.rend() && last.size() < kMaxContextIds;
       ++id) {
    if (has_text(*id)) last.push_back(*id);
  }
  for (size_t count = std::min(last.size(), kContextIds);;
       count = std::min(last.size(), count * 2)) {
    window_.assign(last.rend() - static_cast<std::ptrdiff_t>(count), last.rend());
    absl::StatusOr<std::string> text = tokenizer_.Decode(window_, options_.skip_special_tokens);
    // Ids with tokens always decode; should a decoder fail all the same, the stream starts without
    // context.
    if (!text.ok()) window_.clear();
    sent_ = text.ok() ? *std::move(text) : std::string();
    if (count == last.size() || window_.empty()) break;
    if (!sent_.empty() && !sent_.starts_with(kReplacement)) break;
  }
  if (Stable(sent_).size() < sent_.size()) prompt_stable_ = Stable(sent_);
  group_start_ = 0;
  clean_ = window_.size();
}

absl::StatusOr<std::string> StreamDecoder::DecodeFrom(size_t start) const {
  return tokenizer_.Decode(std::span(window_).subspan(start), options_.skip_special_tokens);
}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  if (!tokenizer_.IdToToken(id).has_value()) {
    if (options_.ignore_unknown_ids) return std::string();
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is not in the tokenizer's vocabulary"));
  }
  // Decoders never see special tokens that are skipped, so the window need not hold them.
  if (options_.skip_special_tokens && tokenizer_.IsSpecial(id)) return std::string();
  window_.push_back(id);
  ASSIGN_OR_RETURN(const std::string text, DecodeFrom(0));
  return Advance(text);
}

// `text` is that of the window. Sends what is new and certain in it.
absl::StatusOr<std::string> StreamDecoder::Advance(std::string_view text) {
  const std::string_view stable = Stable(text);
  const bool holds = stable.size() < text.size();
  if (prompt_stable_.has_value() && !text.starts_with(sent_) &&
      stable.starts_with(*prompt_stable_)) {
    sent_ = *prompt_stable_;
  }
  std::string delta;
  if (stable.starts_with(sent_)) {
    delta = stable.substr(sent_.size());
    sent_ = stable;
  } else if (!text.starts_with(sent_)) {
    // Bytes after a finished character may hide it for a moment, where a decoder gives up on all
    // bytes in a row.
    if (holds && window_.size() - clean_ < kMaxHeldIds) return std::string();
    return Restart();
  }
  if (!holds) {
    prompt_stable_.reset();
    RETURN_IF_ERROR(Settle());
  } else if (window_.size() > kMaxWindow) {
    delta += text.substr(sent_.size());
    RETURN_IF_ERROR(KeepLast(kContextIds));
  }
  return delta;
}

// The window's text no longer continues what was sent: the ids since then are decoded on their own.
absl::StatusOr<std::string> StreamDecoder::Restart() {
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(clean_));
  ASSIGN_OR_RETURN(const std::string text, DecodeFrom(0));
  prompt_stable_.reset();
  group_start_ = 0;
  clean_ = 0;
  sent_ = Stable(text);
  std::string delta = sent_;
  if (sent_.size() == text.size()) clean_ = window_.size();
  return delta;
}

// Nothing is held back: shrinks the window to the ids of the last group that shows text.
absl::Status StreamDecoder::Settle() {
  clean_ = window_.size();
  ASSIGN_OR_RETURN(std::string text, DecodeFrom(group_start_));
  if (text.empty()) return window_.size() > kMaxWindow ? KeepLast(kContextIds) : absl::OkStatus();
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(group_start_));
  sent_ = std::move(text);
  group_start_ = clean_ = window_.size();
  return absl::OkStatus();
}

// Starts anew with the last ids as context, everything sent.
absl::Status StreamDecoder::KeepLast(size_t id_count) {
  id_count = std::min(id_count, window_.size());
  window_.erase(window_.begin(), window_.end() - static_cast<std::ptrdiff_t>(id_count));
  ASSIGN_OR_RETURN(sent_, DecodeFrom(0));
  group_start_ = clean_ = window_.size();
  return absl::OkStatus();
}

absl::StatusOr<std::string> StreamDecoder::Flush() {
  if (clean_ == window_.size()) return std::string();
  ASSIGN_OR_RETURN(const std::string text, DecodeFrom(0));
  std::string rest;
  if (text.starts_with(sent_)) {
    rest = text.substr(sent_.size());
  } else {
    ASSIGN_OR_RETURN(rest, DecodeFrom(clean_));
  }
  RETURN_IF_ERROR(KeepLast(kContextIds));
  return rest;
}

}  // namespace qserve::worker::text
