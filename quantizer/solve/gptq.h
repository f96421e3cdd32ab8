// Rounding one linear so that its output changes least, given second moments of its inputs:
// Frantar et al., "GPTQ" (ICLR 2023), with columns in descending order of their moment and scales
// chosen beforehand, then coordinate descent over the codes with the scales fitted again between
// sweeps. Pure functions; results do not depend on the number of threads.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "quantizer/block/matrix.h"
#include "quantizer/solve/solve_options.h"

namespace qserve::quantizer::solve {

// `weights` [n][k]; `moments` [k][k] = mean of x x^T over inputs x, symmetric. InvalidArgument as
// for round to nearest, and for moments that are not finite. The bias is left empty.
absl::StatusOr<kernels::LinearWeight> SolveLinear(const MatrixF& weights, const MatrixD& moments,
                                                  const SolveOptions& options);

// Mean over outputs of (w - w')^T moments (w - w') relative to w^T moments w, for reports.
double RelativeError(const MatrixF& weights, const kernels::LinearWeight& rounded,
                     const MatrixD& moments);

// W* that makes W* x come closest to targets: W + change (moments + damping mean(diag) I)^-1, where
// `change` [n][k] is the mean of (target - W x) x^T.
absl::StatusOr<MatrixF> Correct(const MatrixF& weights, const MatrixD& change,
                                const MatrixD& moments, double damping, int threads);

}  // namespace qserve::quantizer::solve
