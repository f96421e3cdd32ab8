// Calibration text, cut into windows of tokens. Called once by the pipeline; no state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::quantizer::calibration {

struct WindowOptions {
  int64_t samples = 128;  // at most
  int64_t length = 1024;  // tokens of each
  uint64_t seed = 42;     // of the choice, where there are more windows than samples
};

// Consecutive pieces of `length` tokens; of those as many as asked for, drawn by `seed` and in
// order of the text. InvalidArgument if there is not one.
absl::StatusOr<std::vector<std::vector<int32_t>>> ChooseWindows(std::span<const int32_t> tokens,
                                                                const WindowOptions& options);

}  // namespace qserve::quantizer::calibration
