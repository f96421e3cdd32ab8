// Where device outcomes (kernels/status.h) become the worker's: used by worker/model while loading
// and by worker/exec for steps.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/status.h"

namespace qserve::worker::model {

inline absl::Status ToAbsl(const kernels::Status& status) {
  switch (status.code()) {
    case kernels::StatusCode::kOk:
      return absl::OkStatus();
    case kernels::StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError(status.message());
    case kernels::StatusCode::kUnsupported:
      return absl::UnimplementedError(status.message());
    case kernels::StatusCode::kOutOfMemory:
      return absl::ResourceExhaustedError(status.message());
    case kernels::StatusCode::kDevice:
      return absl::InternalError(status.message());
  }
  return absl::InternalError(status.message());
}

template <class T>
absl::StatusOr<T> ToAbsl(kernels::StatusOr<T> value) {
  if (!value.ok()) return ToAbsl(value.status());
  return *std::move(value);
}

}  // namespace qserve::worker::model
