// Makes things on other threads while this one consumes them in order, a bounded number ahead:
// reading and quantizing weights while earlier ones are packed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <utility>

#include "absl/status/statusor.h"
#include "common/status_macros.h"

namespace qserve::worker::model {

// make(0), ..., make(count - 1) run on up to `threads` threads at a time (make is called
// concurrently); take(i, value) runs on the caller's, in order. The first error is returned once
// every running make has ended.
template <class T>
absl::Status ReadAhead(int64_t count, int threads,
                       const std::function<absl::StatusOr<T>(int64_t)>& make,
                       const std::function<absl::Status(int64_t, T)>& take) {
  std::deque<std::future<absl::StatusOr<T>>>
      ahead;  // a future of std::async joins its thread when it dies
  int64_t started = 0;
  for (int64_t i = 0; i < count; ++i) {
    while (started < count && started < i + std::max(threads, 1)) {
      ahead.push_back(std::async(std::launch::async, make, started++));
    }
    ASSIGN_OR_RETURN(T value, ahead.front().get());
    ahead.pop_front();
    RETURN_IF_ERROR(take(i, std::move(value)));
  }
  return absl::OkStatus();
}

}  // namespace qserve::worker::model
