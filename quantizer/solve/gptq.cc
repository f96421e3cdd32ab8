// See gptq.h.
#include "quantizer/solve/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/check.h"
#include "common/status_macros.h"
#include "quantizer/block/parallel.h"
#include "quantizer/solve/cholesky.h"
#include "quantizer/solve/grid.h"
#include "quantizer/solve/refine.h"

namespace qserve::quantizer::solve {
namespace {

constexpr int kMostDampings = 12;  // each ten times the one before
constexpr int64_t kTileRows = 16;  // of weights worked on together

// Upper triangular U with U^T U = inverse of the damped moments, columns in `order`.
absl::StatusOr<MatrixF> InverseFactor(const MatrixD& moments, const std::vector<int64_t>& order,
                                      double damping, int threads) {
  const int64_t k = moments.rows();
  const double mean = std::max(moments.diagonal().mean(), 1e-30);
  for (int attempt = 0; attempt < kMostDampings; ++attempt, damping *= 10) {
    MatrixD damped(k, k);
    // Reversed, so that the Cholesky factor of the matrix gives that of its inverse directly.
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        damped(k - 1 - i, k - 1 - j) =
            moments(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
      }
    }
    damped.diagonal().array() += damping * mean;
    if (!FactorLower(damped, threads)) continue;
    // With J the reversal, moments = J L L^T J = V V^T, V = J L J upper triangular, and so
    // U = V^-1 = J L^-1 J.
    const MatrixD inverse = InverseOfLower(damped, threads);
    MatrixF upper(k, k);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j)
        upper(i, j) = static_cast<float>(inverse(k - 1 - i, k - 1 - j));
    }
    if (upper.allFinite()) return upper;
  }
  return absl::InvalidArgumentError("the moments of the calibration inputs cannot be factored");
}

// One linear being rounded: rows are independent, tiles of them are worked on by threads.
class Rounding {
 public:
  Rounding(const MatrixF& weights, std::vector<int64_t> order, MatrixF factor,
           kernels::LinearWeight& rounded)
      : weights_(weights),
        order_(std::move(order)),
        factor_(std::move(factor)),
        group_columns_(GroupColumns(rounded)),
        rounded_(rounded) {}

  void Tile(int64_t first_row, int64_t rows) const {
    const int64_t k = weights_.cols();
    MatrixF tile(rows, k), errors(rows, kBlockColumns);
    for (int64_t i = 0; i < k; ++i) {
      tile.col(i) = weights_.col(order_[static_cast<size_t>(i)]).segment(first_row, rows);
    }
    for (int64_t begin = 0; begin < k; begin += kBlockColumns) {
      const int64_t end = std::min(begin + kBlockColumns, k);
      for (int64_t i = begin; i < end; ++i) Column(first_row, i, begin, end, tile, errors);
      if (end == k) break;
      tile.rightCols(k - end).noalias() -=
          errors.leftCols(end - begin) * factor_.block(begin, end, end - begin, k - end);
    }
  }

 private:
  static constexpr int64_t kBlockColumns = 128;

  // Rounds column `i` of the order and moves its error into the rest of its block.
  void Column(int64_t first_row, int64_t i, int64_t begin, int64_t end, MatrixF& tile,
              MatrixF& errors) const {
    const int64_t column = order_[static_cast<size_t>(i)], k = weights_.cols();
    const float* const factor = factor_.row(i).data();
    for (int64_t r = 0; r < tile.rows(); ++r) {
      const Levels levels = LevelsOf(rounded_, first_row + r, column / group_columns_);
      float* const values = tile.row(r).data();
      const float code = levels.CodeOf(values[i]);
      rounded_.codes[static_cast<size_t>((first_row + r) * k + column)] =
          static_cast<uint8_t>(code);
      const float error = (values[i] - levels.ValueOf(code)) / factor[i];
      for (int64_t j = i + 1; j < end; ++j) values[j] -= error * factor[j];
      errors(r, i - begin) = error;
    }
  }

  const MatrixF& weights_;
  const std::vector<int64_t> order_;
  const MatrixF factor_;
  const int64_t group_columns_;
  kernels::LinearWeight& rounded_;
};

std::vector<int64_t> DescendingMoments(const MatrixD& moments) {
  std::vector<int64_t> order(static_cast<size_t>(moments.rows()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return moments(a, a) > moments(b, b); });
  return order;
}

}  // namespace

absl::StatusOr<kernels::LinearWeight> SolveLinear(const MatrixF& weights, const MatrixD& moments,
                                                  const SolveOptions& options) {
  const int64_t n = weights.rows(), k = weights.cols();
  QSERVE_CHECK(moments.rows() == k && moments.cols() == k);
  if (!moments.allFinite() || !weights.allFinite()) {
    return absl::InvalidArgumentError(
        "weights or the moments of calibration inputs are not finite");
  }
  const double floor = options.damping * std::max(moments.diagonal().mean(), 1e-30);
  const VectorF importance = (moments.diagonal().array() + floor).cast<float>();
  kernels::StatusOr<kernels::LinearWeight> chosen = ChooseGrid(weights, importance, options);
  if (!chosen.ok()) return absl::InvalidArgumentError(chosen.status().message());
  if (!options.gptq) return *std::move(chosen);
  std::vector<int64_t> order = DescendingMoments(moments);
  ASSIGN_OR_RETURN(MatrixF factor, InverseFactor(moments, order, options.damping, options.threads));
  const Rounding rounding(weights, std::move(order), std::move(factor), *chosen);
  ParallelFor(options.threads, (n + kTileRows - 1) / kTileRows, [&](int64_t tile) {
    rounding.Tile(tile * kTileRows, std::min(kTileRows, n - tile * kTileRows));
  });
  if (options.sweeps > 0) Refine(weights, moments, options, *chosen);
  return *std::move(chosen);
}

double RelativeError(const MatrixF& weights, const kernels::LinearWeight& rounded,
                     const MatrixD& moments) {
  constexpr int64_t kPieceRows = 64;
  const int64_t k = weights.cols();
  double error = 0, all = 0;
  for (int64_t begin = 0; begin < weights.rows(); begin += kPieceRows) {
    const int64_t rows = std::min(kPieceRows, weights.rows() - begin);
    MatrixF values(rows, k);
    for (int64_t r = 0; r < rows; ++r)
      kernels::DequantizeRow(rounded, begin + r, values.row(r).data());
    const MatrixD exact = weights.middleRows(begin, rows).cast<double>();
    const MatrixD difference = exact - values.cast<double>();
    error += (difference * moments).cwiseProduct(difference).sum();
    all += (exact * moments).cwiseProduct(exact).sum();
  }
  return all > 0 ? error / all : 0;
}

absl::StatusOr<MatrixF> Correct(const MatrixF& weights, const MatrixD& change,
                                const MatrixD& moments, double damping, int threads) {
  MatrixD damped = moments;
  damped.diagonal().array() += damping * std::max(moments.diagonal().mean(), 1e-30);
  if (!FactorLower(damped, threads)) {
    return absl::InvalidArgumentError("the moments of the calibration inputs cannot be factored");
  }
  MatrixD solved = change.transpose();  // [k][n]
  SolveByLower(damped, solved, threads);
  MatrixF corrected = weights + solved.transpose().cast<float>();
  if (!corrected.allFinite()) {
    return absl::InvalidArgumentError("the correction by calibration is not finite");
  }
  return corrected;
}

}  // namespace qserve::quantizer::solve
