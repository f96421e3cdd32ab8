// See windows.h.
#include "quantizer/calibration/windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "common/philox.h"

namespace qserve::quantizer::calibration {
absl::StatusOr<std::vector<std::vector<int32_t>>> ChooseWindows(std::span<const int32_t> tokens,
                                                                const WindowOptions& options) {
  const int64_t there = std::ssize(tokens) / options.length;
  if (there == 0) {
    return absl::InvalidArgumentError(
        fmt::format("the calibration text has {} tokens, less than one window of {}", tokens.size(),
                    options.length));
  }
  std::vector<int64_t> order(static_cast<size_t>(there));
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min(options.samples, there);
  for (int64_t i = 0; count < there && i < count; ++i) {
    const PhiloxBlock bits = Philox4x32(
        {static_cast<uint32_t>(i), 0, 0, 0},
        {static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32)});
    const auto other = i + static_cast<int64_t>(bits[0] % static_cast<uint64_t>(there - i));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(other)]);
  }
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  std::vector<std::vector<int32_t>> windows;
  for (const int64_t at : order) {
    const auto piece = tokens.subspan(static_cast<size_t>(at * options.length),
                                      static_cast<size_t>(options.length));
    windows.emplace_back(piece.begin(), piece.end());
  }
  return windows;
}

}  // namespace qserve::quantizer::calibration
