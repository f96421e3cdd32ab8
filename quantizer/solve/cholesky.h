// Cholesky factors of moments, by all threads: an 8B model's down_proj has 14336 columns. Called by
// gptq.cc. Pure functions; results do not depend on the number of threads.
#pragma once

#include "quantizer/block/matrix.h"

namespace qserve::quantizer::solve {

// Replaces the lower triangle of `matrix`, symmetric, by L with L L^T = matrix; what is above the
// diagonal is left undefined. False if the matrix is not positive definite.
bool FactorLower(MatrixD& matrix, int threads);

// L^-1 of a lower triangle.
MatrixD InverseOfLower(const MatrixD& lower, int threads);

// Replaces the columns of `right` by those of (L L^T)^-1 right.
void SolveByLower(const MatrixD& lower, MatrixD& right, int threads);

}  // namespace qserve::quantizer::solve
