// Other ways to quantize, in simulation, to compare QoQ with: SmoothQuant's W8A8 and AWQ's W4A16.
// Called by evaluation.cc; the statistics are taken by running the full-precision model.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "quantizer/evaluate/perplexity.h"
#include "quantizer/evaluate/trial.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::quantizer {

// Of what one linear reads, over the calibration text.
struct InputStatistics {
  std::vector<float> largest;  // of each column's magnitudes
  std::vector<float> mean;     // of them
  int64_t tokens = 0;
  std::vector<float> sample;  // [rows][columns], a few tokens evenly spread
};
using ModelStatistics = std::map<LinearPlace, InputStatistics>;

// `source` is full precision. Errors: those of running it; Cancelled.
absl::StatusOr<ModelStatistics> CollectStatistics(const worker::checkpoint::Checkpoint& source,
                                                  const TrialOptions& options,
                                                  std::span<const int32_t> tokens,
                                                  std::span<const Window> windows,
                                                  const std::atomic<bool>* interrupted);

// Xiao et al., "SmoothQuant": what norms feed (q|k|v, gate|up) has its columns divided by
// max|x|^alpha / max|w|^(1 - alpha) and the weights multiplied; weights int8 symmetric per row,
// activations int8 per token. `source` must outlive the result.
absl::StatusOr<Smoothing> SmoothQuant(const worker::checkpoint::Checkpoint& source,
                                      const ModelStatistics& statistics, double alpha);

// Lin et al., "AWQ": columns of weights multiplied by mean|x|^r before rounding, r searched per
// input on its sample; weights uint4 with a floating-point scale and zero per 128 columns, their
// ranges clipped where that helps (not q and k); activations not rounded. Both arguments must
// outlive the result.
absl::StatusOr<Smoothing> Awq(const worker::checkpoint::Checkpoint& source,
                              const ModelStatistics& statistics);

}  // namespace qserve::quantizer
