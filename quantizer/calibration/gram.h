// Statistics of calibration tokens, a window at a time: sums of outer products, which GPTQ calls
// the Hessian, and largest magnitudes. Products run on the device in fp32, sums over windows are
// fp64. The quantizer's thread.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "quantizer/block/matrix.h"

namespace qserve::quantizer::calibration {

// a b^T for a [m][k], b [n][k].
absl::StatusOr<MatrixF> MultiplyTransposed(kernels::Backend& backend, const MatrixF& a,
                                           const MatrixF& b);

// sum += a^T b for a [tokens][m], b [tokens][n], sum [m][n].
absl::Status AddGram(kernels::Backend& backend, const MatrixF& a, const MatrixF& b, MatrixD& sum);

// largest = the larger of it and the magnitudes in each column of x; empty at first.
void TakeLargest(const MatrixF& x, VectorF& largest);

// Rows rounded to int8 and back, as a quantized linear sees them.
void SimulateInt8(MatrixF& x);

}  // namespace qserve::quantizer::calibration
