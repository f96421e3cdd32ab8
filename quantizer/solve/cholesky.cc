// See cholesky.h.
#include "quantizer/solve/cholesky.h"

#include <Eigen/Cholesky>

#include <algorithm>

#include "quantizer/block/parallel.h"

namespace qserve::quantizer::solve {
namespace {

constexpr int64_t kBlock = 128;   // columns factored together
constexpr int64_t kColumns = 64;  // of a right side, worked on by one thread

int64_t Pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

// Right-looking: a block on the diagonal, the panel below it, then what is left of both, a stripe
// of rows a thread.
bool FactorLower(MatrixD& matrix, int threads) {
  const int64_t k = matrix.rows();
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t size = std::min(kBlock, k - begin), end = begin + size;
    auto diagonal = matrix.block(begin, begin, size, size);
    const Eigen::LLT<MatrixD> factor(diagonal);
    if (factor.info() != Eigen::Success) return false;
    diagonal = factor.matrixL();
    const MatrixD upper = factor.matrixU();
    ParallelFor(threads, Pieces(k - end, kBlock), [&](int64_t piece) {
      const int64_t row = end + piece * kBlock, rows = std::min(kBlock, k - row);
      auto panel = matrix.block(row, begin, rows, size);
      upper.triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(panel);
    });
    ParallelFor(threads, Pieces(k - end, kBlock), [&](int64_t piece) {
      const int64_t row = end + piece * kBlock, rows = std::min(kBlock, k - row);
      matrix.block(row, end, rows, row + rows - end).noalias() -=
          matrix.block(row, begin, rows, size) *
          matrix.block(end, begin, row + rows - end, size).transpose();
    });
  }
  return true;
}

// A block of columns begins with its diagonal: what is above it is zero.
MatrixD InverseOfLower(const MatrixD& lower, int threads) {
  const int64_t k = lower.rows();
  MatrixD inverse = MatrixD::Zero(k, k);
  ParallelFor(threads, Pieces(k, kColumns), [&](int64_t piece) {
    const int64_t begin = piece * kColumns, rest = k - begin;
    MatrixD columns = MatrixD::Identity(rest, std::min(kColumns, rest));
    lower.bottomRightCorner(rest, rest).triangularView<Eigen::Lower>().solveInPlace(columns);
    inverse.block(begin, begin, rest, columns.cols()) = columns;
  });
  return inverse;
}

void SolveByLower(const MatrixD& lower, MatrixD& right, int threads) {
  ParallelFor(threads, Pieces(right.cols(), kColumns), [&](int64_t piece) {
    const int64_t begin = piece * kColumns;
    MatrixD columns = right.middleCols(begin, std::min(kColumns, right.cols() - begin));
    lower.triangularView<Eigen::Lower>().solveInPlace(columns);
    lower.triangularView<Eigen::Lower>().transpose().solveInPlace(columns);
    right.middleCols(begin, columns.cols()) = columns;
  });
}

}  // namespace qserve::quantizer::solve
