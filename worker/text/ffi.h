// Ownership and errors of the Rust text library's C ABI (rust/qserve_text.h), for the classes of
// this folder only. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/text/rust/qserve_text.h"

namespace qserve::worker::text {

inline const uint8_t* BytesOf(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// An output slot for bytes; frees what the library put there.
class FfiBytes {
 public:
  FfiBytes() = default;
  FfiBytes(const FfiBytes&) = delete;
  FfiBytes& operator=(const FfiBytes&) = delete;
  ~FfiBytes() { qserve_text_bytes_free(bytes_); }

  QserveTextBytes* slot() { return &bytes_; }
  std::string ToString() const;

 private:
  QserveTextBytes bytes_{nullptr, 0};
};

// An output slot for token ids.
class FfiIds {
 public:
  FfiIds() = default;
  FfiIds(const FfiIds&) = delete;
  FfiIds& operator=(const FfiIds&) = delete;
  ~FfiIds() { qserve_text_ids_free(ids_); }

  QserveTextIds* slot() { return &ids_; }
  // The library refuses vocabularies whose ids would not fit.
  std::vector<int32_t> ToVector() const;

 private:
  QserveTextIds ids_{nullptr, 0};
};

// The library's code and message as a status: invalid input and exceeded limits are both the
// caller's InvalidArgument (retrying helps neither), a panic is Internal.
absl::Status FfiStatus(QserveTextCode code, const FfiBytes& error);

}  // namespace qserve::worker::text
