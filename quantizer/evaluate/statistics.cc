// What linears read on the calibration text: comparison.h, CollectStatistics.
#include <algorithm>
#include <cmath>
#include <memory>

#include "common/status_macros.h"
#include "quantizer/evaluate/comparison.h"

namespace qserve::quantizer {
namespace {

using kernels::Matrix;
using worker::model::LinearInput;

constexpr int64_t kSampleRows = 128;

class Collector final : public worker::model::ActivationObserver {
 public:
  // About that many tokens will pass.
  explicit Collector(int64_t tokens) : step_(std::max<int64_t>(tokens / kSampleRows, 1)) {}

  void OnLinearInput(int64_t layer, LinearInput linear, Matrix<const float> x) override {
    InputStatistics& input = statistics_[{layer, linear}];
    input.largest.resize(static_cast<size_t>(x.cols), 0.0f);
    input.mean.resize(static_cast<size_t>(x.cols), 0.0f);
    for (int64_t r = 0; r < x.rows; ++r) {
      const float* row = x.row(r);
      for (int64_t c = 0; c < x.cols; ++c) {
        const auto at = static_cast<size_t>(c);
        const float magnitude = std::abs(row[c]);
        input.largest[at] = std::max(input.largest[at], magnitude);
        input.mean[at] += magnitude;
      }
      const bool room = std::ssize(input.sample) < kSampleRows * x.cols;
      if (input.tokens++ % step_ == 0 && room)
        input.sample.insert(input.sample.end(), row, row + x.cols);
    }
  }
  void OnRotated(int64_t, Matrix<const float>, Matrix<const float>) override {}
  void OnBlockOutput(int64_t, Matrix<const float>) override {}

  ModelStatistics Take() {
    for (auto& [place, input] : statistics_) {
      for (float& mean : input.mean) mean /= static_cast<float>(input.tokens);
    }
    return std::move(statistics_);
  }

 private:
  const int64_t step_;
  ModelStatistics statistics_;
};

}  // namespace

absl::StatusOr<ModelStatistics> CollectStatistics(const worker::checkpoint::Checkpoint& source,
                                                  const TrialOptions& options,
                                                  std::span<const int32_t> tokens,
                                                  std::span<const Window> windows,
                                                  const std::atomic<bool>* interrupted) {
  int64_t total = 0;
  for (const Window& window : windows) total += window.size;
  Collector collector(total);
  ASSIGN_OR_RETURN(const Setting full, ParseSetting("w16a16kv16"));
  ASSIGN_OR_RETURN(const std::unique_ptr<Trial> trial,
                   Trial::Create(source, full, options, nullptr, &collector));
  for (const Window& window : windows) {
    if (interrupted != nullptr && *interrupted) return absl::CancelledError("interrupted");
    const auto sequence =
        tokens.subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.size));
    const auto ignore = [](int64_t, Matrix<const float>) { return absl::OkStatus(); };
    RETURN_IF_ERROR(trial->runner().Visit(sequence, 0, ignore));
  }
  return collector.Take();
}

}  // namespace qserve::quantizer
