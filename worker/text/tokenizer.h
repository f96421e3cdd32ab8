// The model's tokenizer, as Hugging Face `tokenizers` has it (the Rust library does the work).
// Loaded once by the worker at start-up, then used by every request thread: immutable and
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

struct QserveTokenizer;  // the Rust handle

namespace qserve::worker::text {

inline constexpr size_t kDefaultMaxTextBytes = size_t{4} << 20;

struct EncodeOptions {
  // Let the tokenizer's post-processor add its tokens (BOS and the like).
  bool add_special_tokens = true;
  // Text that spells a special token becomes that token. When false it is tokenized as ordinary
  // text; added tokens that are not special are recognized either way.
  bool parse_special = true;
  // Longer text is InvalidArgument.
  size_t max_bytes = kDefaultMaxTextBytes;
};

class Tokenizer {
 public:
  // Reads tokenizer.json, tokenizer_config.json and special_tokens_map.json (the last two may be
  // absent). NotFound without a tokenizer.json; InvalidArgument for files that are too large or
  // malformed. Truncation and padding settings are ignored.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  // InvalidArgument: not UTF-8, or too long.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view utf8,
                                              const EncodeOptions& options = {}) const;

  // InvalidArgument: an id that has no token. Bytes that are not UTF-8 come out as U+FFFD.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // One more than the highest id. A model's own vocabulary may be padded beyond it.
  int32_t vocab_size() const { return vocab_size_; }
  // Of tokenizer_config.json; empty when it names none. generation_config.json may add more.
  const std::vector<int32_t>& eos_token_ids() const { return eos_token_ids_; }
  std::optional<int32_t> bos_token_id() const { return bos_token_id_; }

  // Vocabulary entries in the tokenizer's own spelling ("Ġthe"), nullopt when there is none.
  std::optional<std::string> IdToToken(int32_t id) const;
  std::optional<int32_t> TokenToId(std::string_view token) const;
  // Whether `id` is marked special: left out by Decode when skipping.
  bool IsSpecial(int32_t id) const;

  // For ChatTemplate only.
  const QserveTokenizer* handle() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(QserveTokenizer* handle) const;
  };
  using Handle = std::unique_ptr<QserveTokenizer, Destroy>;

  explicit Tokenizer(Handle handle) : handle_(std::move(handle)) {}

  Handle handle_;
  int32_t vocab_size_ = 0;
  std::vector<int32_t> special_ids_;  // ascending
  std::vector<int32_t> eos_token_ids_;
  std::optional<int32_t> bos_token_id_;
};

}  // namespace qserve::worker::text
