// How far each layer of a quantized model is from full precision: the ratio of signal to error of
// what every linear computes and of the keys and values that attention reads. Called by
// evaluation.cc; runs both models in turn, a step of 256 tokens at a time, and holds the
// full-precision outputs of one step (an 8B model: 1.4 GB).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantizer/evaluate/perplexity.h"
#include "quantizer/evaluate/trial.h"

namespace qserve::quantizer {

struct LayerError {
  int64_t layer = 0;
  std::string what;   // "q_proj", ..., "down_proj"; "key", "value": as stored, keys after rotation
  double snr_db = 0;  // 10 log10(sum of squares / sum of squared errors); infinite: no error
};

// What a report is made from; both directories have the same shapes.
struct ReportSource {
  const worker::checkpoint::Checkpoint& reference;
  const worker::checkpoint::Checkpoint& model;
  Setting setting;  // of the model
};

// In order of the layers and of the linears within them. InvalidArgument where the two are not the
// same function in the same basis (see SameBasis); Unimplemented on a device other than a CPU.
absl::StatusOr<std::vector<LayerError>> CompareLayers(const ReportSource& source,
                                                      const TrialOptions& options,
                                                      std::span<const int32_t> tokens,
                                                      std::span<const Window> windows,
                                                      const std::atomic<bool>* interrupted);

// Rotating the residual stream changes what nearly every linear computes, though not the model's
// function: layers can be compared only between directories whose embeddings agree.
absl::StatusOr<bool> SameBasis(const worker::checkpoint::Checkpoint& a,
                               const worker::checkpoint::Checkpoint& b);

}  // namespace qserve::quantizer
