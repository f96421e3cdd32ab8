// Incremental detokenization: turns the ids of one candidate into text deltas as they come. Owned
// and used by one stream at a time (the pump thread); not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/text/tokenizer.h"

namespace qserve::worker::text {

struct StreamDecoderOptions {
  bool skip_special_tokens = true;
  // Ids without a token give no text instead of InvalidArgument. For models whose vocabulary is
  // padded beyond the tokenizer's.
  bool ignore_unknown_ids = false;
};

// Deltas never split a UTF-8 sequence, and together they are the text that Decode gives for all
// ids, less that of the prompt. The exception is text with U+FFFD in it, be it for bytes that are
// not UTF-8: where Decode would change what was handed out already (a tokenizer with byte fallback
// turns the characters before a bad byte into U+FFFD as well), that stands, and the number of
// U+FFFD may differ.
//
// How: a short window of ids is decoded again on each push. Text at its end that may be an
// unfinished sequence (U+FFFD) is held back. Once nothing is held the window shrinks to the ids
// that gave the last delta, which is context enough for decoders that treat the first token of a
// text differently (a leading space).
class StreamDecoder {
 public:
  // `prompt_ids` are the ids before the first one pushed; only the last few are kept. `tokenizer`
  // must outlive this.
  StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids,
                StreamDecoderOptions options = {});

  // The text that `id` completes; empty while it completes none. InvalidArgument for an id without
  // a token, and the decoder can go on after that.
  absl::StatusOr<std::string> Push(int32_t id);

  // What is still held back, at the end of the stream. Unfinished sequences come out as U+FFFD.
  absl::StatusOr<std::string> Flush();

 private:
  void TakeContext(std::span<const int32_t> prompt_ids);
  absl::StatusOr<std::string> Advance(std::string_view text);
  absl::StatusOr<std::string> Restart();
  absl::Status Settle();
  absl::Status KeepLast(size_t id_count);
  absl::StatusOr<std::string> DecodeFrom(size_t start) const;

  const Tokenizer& tokenizer_;
  const StreamDecoderOptions options_;
  std::vector<int32_t> window_;
  std::string sent_;        // the beginning of window_'s text that needs no sending any more
  size_t group_start_ = 0;  // in window_: the first id since the window last shrank
  size_t clean_ = 0;        // in window_: the first id since nothing was held back
  // The prompt's text without its unfinished end, until the first delta: generated ids may finish a
  // character of the prompt.
  std::optional<std::string> prompt_stable_;
};

}  // namespace qserve::worker::text
