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

struct LayerReport {
  // Between two directories errors are up to the changes by which a quantizer leaves the function
  // as it is (outputs of o_proj and down_proj turned as the embeddings are, a map of each value
  // head, a factor of every other channel).
  bool aligned = false;
  std::vector<LayerError> errors;  // in order of the layers and of the linears within them
};

// InvalidArgument where the two are not the same model; Unimplemented on a device other than a CPU.
absl::StatusOr<LayerReport> CompareLayers(const ReportSource& source, const TrialOptions& options,
                                          std::span<const int32_t> tokens,
                                          std::span<const Window> windows,
                                          const std::atomic<bool>* interrupted);

}  // namespace qserve::quantizer
