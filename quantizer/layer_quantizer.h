// Rounds one block after the other: transforms its weights, rounds its linears in the order in
// which they run, each on inputs from what is rounded already, and takes the calibration windows
// through it. Called by pipeline.cc on its thread.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/settings.h"
#include "quantizer/transform/hadamard.h"

namespace qserve::quantizer {

// The residual stream of every calibration window [tokens][hidden], in full precision and as the
// quantized model has it.
struct Streams {
  std::vector<MatrixF> exact;
  std::vector<MatrixF> rounded;
};

struct RoundedBlock {
  std::array<kernels::LinearWeight, kLinearCount> linears;
  VectorF q_gain, k_gain;
};

// Second moments of a linear's inputs over the calibration windows, all of them means over tokens.
struct InputMoments {
  MatrixD moments;  // x x^T of the rounded stream, [k][k]
  MatrixD inputs;   // (exact x - x) x^T; empty if nothing is corrected
};

class LayerQuantizer {
 public:
  // `runner` may be null where the settings need no calibration, `rotation` where nothing turns.
  // `check` is asked now and then whether to go on.
  LayerQuantizer(const Settings& settings, calibration::BlockRunner* runner,
                 const transform::Hadamard* rotation, std::function<absl::Status()> check)
      : settings_(settings), runner_(runner), rotation_(rotation), check_(std::move(check)) {}

  // Takes `streams` (none without a runner) from before the block to behind it.
  absl::StatusOr<RoundedBlock> Quantize(BlockWeights block, Streams& streams);

 private:
  absl::Status QuantizeStage(calibration::Stage stage, const BlockWeights& block, Streams& streams,
                             RoundedBlock& to);
  absl::StatusOr<InputMoments> Collect(calibration::Stage stage, Streams& streams);
  absl::StatusOr<MatrixF> ExactInput(calibration::Stage stage, MatrixF& hidden);
  absl::StatusOr<MatrixF> Corrected(const MatrixF& weights, const InputMoments& input) const;
  absl::Status Calibrate(const BlockWeights& block, Streams& streams, RoundedBlock& to);

  const Settings& settings_;
  calibration::BlockRunner* const runner_;
  const transform::Hadamard* const rotation_;
  const std::function<absl::Status()> check_;
  calibration::DeviceBlock exact_, rounded_;  // of the block at hand
};

}  // namespace qserve::quantizer
