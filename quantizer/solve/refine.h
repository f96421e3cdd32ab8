// Better codes and scales for a linear that is rounded already: coordinate descent on the same
// error that GPTQ minimises greedily. Each step lowers the error or leaves it. Pure function.
#pragma once

#include "kernels/quant/linear_weight.h"
#include "quantizer/block/matrix.h"
#include "quantizer/solve/solve_options.h"

namespace qserve::quantizer::solve {

// For each row, options.sweeps times: every code in turn takes the value that is best while the
// others stay; each group's integer scale and offset may move by one or as far as the error falls
// (free_zero only); the row's scale (and zero, per channel) is fitted by least squares.
void Refine(const MatrixF& weights, const MatrixD& moments, const SolveOptions& options,
            kernels::LinearWeight& rounded);

}  // namespace qserve::quantizer::solve
