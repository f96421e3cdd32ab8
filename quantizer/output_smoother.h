// Smoothing of o_proj's and down_proj's inputs and their order: exponents as given, or those with
// which the linear's output errs least once its weights have 4 bits and its inputs 8. Called by
// block_transformer.cc.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/solve/solve_options.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer {

// On the quantizer's thread; errors are the device's. `hidden`: the residual stream before the
// block of every window, in full precision. `rounding`: how weights will be rounded; the search
// takes its grids, and codes to nearest.
absl::Status SmoothOutputs(const transform::TransformOptions& options,
                           const solve::SolveOptions& rounding, calibration::BlockRunner& runner,
                           const std::vector<MatrixF>& hidden, BlockWeights& block);

// |Q8(x / s) Q4(W s)^T - exact|^2 over the tokens of `inputs` x [tokens][k], for W [n][k], scales s
// [k] of its columns, none of them zero, and `exact` = x W^T [tokens][n]. Likewise.
absl::StatusOr<double> SmoothedError(const MatrixF& weight, const MatrixF& inputs,
                                     const MatrixF& exact, const VectorF& scales,
                                     const solve::SolveOptions& rounding,
                                     kernels::Backend& backend);

}  // namespace qserve::quantizer
