// The outcome of a device operation. kernels/ builds with nothing but a compiler, so it has a
// status of its own; worker/exec turns it into an absl::Status at the one place where the two meet.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "common/check.h"

namespace qserve::kernels {

enum class StatusCode {
  kOk,
  kInvalidArgument,  // shapes or formats that do not fit together
  kUnsupported,      // well formed, but this backend has no kernel for it
  kOutOfMemory,
  kDevice,  // the device failed; the process must not go on using it
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) {
  return {StatusCode::kInvalidArgument, std::move(message)};
}
inline Status Unsupported(std::string message) {
  return {StatusCode::kUnsupported, std::move(message)};
}

// A value or the reason why there is none.
template <class T>
class [[nodiscard]] StatusOr {
 public:
  StatusOr(T value) : value_(std::move(value)) {}  // NOLINT: implicit by intent, as absl::StatusOr
  StatusOr(Status status) : status_(std::move(status)) {
    QSERVE_CHECK(!status_.ok());
  }  // NOLINT: as above
  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace qserve::kernels
