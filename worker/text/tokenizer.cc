#include "worker/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/text/ffi.h"
#include "worker/text/model_files.h"

namespace qserve::worker::text {
namespace {

// The largest known tokenizer.json has about 35 MB.
constexpr size_t kMaxTokenizerBytes = size_t{128} << 20;

}  // namespace

void Tokenizer::Destroy::operator()(QserveTokenizer* handle) const {
  qserve_tokenizer_destroy(handle);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::optional<std::string> json,
                   ReadModelFile(model_dir, "tokenizer.json", kMaxTokenizerBytes));
  if (!json.has_value())
    return absl::NotFoundError(absl::StrCat(model_dir, " has no tokenizer.json"));
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(model_dir));

  QserveTokenizer* raw = nullptr;
  FfiBytes error;
  const QserveTextCode code =
      qserve_tokenizer_create(BytesOf(*json), json->size(), &raw, error.slot());
  if (absl::Status status = FfiStatus(code, error); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(model_dir, "/tokenizer.json: ", status.message()));
  }
  auto tokenizer = std::unique_ptr<Tokenizer>(new Tokenizer(Handle(raw)));
  tokenizer->vocab_size_ = static_cast<int32_t>(qserve_tokenizer_vocab_size(raw));
  FfiIds special;
  RETURN_IF_ERROR(
      FfiStatus(qserve_tokenizer_special_ids(raw, special.slot(), error.slot()), error));
  tokenizer->special_ids_ = special.ToVector();
  if (const auto eos = config.TokenText("eos_token"); eos.has_value()) {
    if (const auto id = tokenizer->TokenToId(*eos); id.has_value())
      tokenizer->eos_token_ids_.push_back(*id);
  }
  if (const auto bos = config.TokenText("bos_token"); bos.has_value()) {
    tokenizer->bos_token_id_ = tokenizer->TokenToId(*bos);
  }
  return tokenizer;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view utf8,
                                                       const EncodeOptions& options) const {
  if (utf8.size() > options.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "text has ", utf8.size(), " bytes, more than the ", options.max_bytes, " allowed"));
  }
  FfiIds ids;
  FfiBytes error;
  const QserveTextCode code = qserve_tokenizer_encode(
      handle_.get(), BytesOf(utf8), utf8.size(), options.add_special_tokens ? 1 : 0,
      options.parse_special ? 1 : 0, ids.slot(), error.slot());
  RETURN_IF_ERROR(FfiStatus(code, error));
  return ids.ToVector();
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  const auto negative = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
  if (negative != ids.end())
    return absl::InvalidArgumentError(absl::StrCat("token id ", *negative, " is negative"));
  const std::vector<uint32_t> unsigned_ids(ids.begin(), ids.end());
  FfiBytes text;
  FfiBytes error;
  const QserveTextCode code =
      qserve_tokenizer_decode(handle_.get(), unsigned_ids.data(), unsigned_ids.size(),
                              skip_special_tokens ? 1 : 0, text.slot(), error.slot());
  RETURN_IF_ERROR(FfiStatus(code, error));
  return text.ToString();
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  if (id < 0) return std::nullopt;
  FfiBytes token;
  FfiBytes error;
  const QserveTextCode code = qserve_tokenizer_id_to_token(handle_.get(), static_cast<uint32_t>(id),
                                                           token.slot(), error.slot());
  if (code != QSERVE_TEXT_OK) return std::nullopt;
  return token.ToString();
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  uint32_t id = 0;
  FfiBytes error;
  const QserveTextCode code =
      qserve_tokenizer_token_to_id(handle_.get(), BytesOf(token), token.size(), &id, error.slot());
  if (code != QSERVE_TEXT_OK) return std::nullopt;
  return static_cast<int32_t>(id);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return std::binary_search(special_ids_.begin(), special_ids_.end(), id);
}

}  // namespace qserve::worker::text
