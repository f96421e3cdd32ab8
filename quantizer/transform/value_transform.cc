// See value_transform.h.
#include "quantizer/transform/value_transform.h"

#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <cmath>

#include "common/check.h"
#include "common/status_macros.h"
#include "quantizer/transform/hadamard.h"

namespace qserve::quantizer::transform {
namespace {

// f of a symmetric matrix's eigenvalues, which are at least `smallest` of the largest.
template <class F>
MatrixD OfEigenvalues(const MatrixD& symmetric, double smallest, F f) {
  const Eigen::SelfAdjointEigenSolver<MatrixD> solver(symmetric);
  VectorD values = solver.eigenvalues();
  const double floor = std::max(values.maxCoeff() * smallest, 1e-300);
  for (double& value : values) value = f(std::max(value, floor));
  return solver.eigenvectors() * values.asDiagonal() * solver.eigenvectors().transpose();
}

absl::StatusOr<MatrixD> HadamardMatrix(int64_t size) {
  ASSIGN_OR_RETURN(const Hadamard hadamard, Hadamard::Create(size, 0));
  MatrixD matrix = MatrixD::Identity(size, size);
  for (int64_t row = 0; row < size; ++row) hadamard.Apply(matrix.row(row).data());
  return MatrixD(matrix.transpose());
}

}  // namespace

void ApplyValueTransform(const std::vector<MatrixD>& matrices, BlockWeights& block) {
  const int64_t dim = block.head_dim;
  QSERVE_CHECK(std::ssize(matrices) == block.kv_heads);
  for (int h = 0; h < block.kv_heads; ++h) {
    const MatrixD& a = matrices[static_cast<size_t>(h)];
    const MatrixD inverse = a.inverse();
    auto values = block[kV].weight.middleRows(h * dim, dim);
    values = (a * values.cast<double>()).cast<float>().eval();
    if (block[kV].has_bias()) {
      auto bias = block[kV].bias.segment(h * dim, dim);
      bias = (a * bias.cast<double>()).cast<float>().eval();
    }
    for (int q = h * block.group(); q < (h + 1) * block.group(); ++q) {
      auto columns = block[kO].weight.middleCols(q * dim, dim);
      columns = (columns.cast<double>() * inverse).cast<float>().eval();
    }
  }
}

absl::StatusOr<std::vector<MatrixD>> HadamardValueTransform(const BlockWeights& block) {
  ASSIGN_OR_RETURN(const MatrixD matrix, HadamardMatrix(block.head_dim));
  return std::vector<MatrixD>(static_cast<size_t>(block.kv_heads), matrix);
}

absl::StatusOr<std::vector<MatrixD>> BalancedValueTransform(const BlockWeights& block,
                                                            const std::vector<MatrixD>& moments) {
  constexpr double kSmallest = 1e-4;  // of the largest eigenvalue: nothing is stretched further
  const int64_t dim = block.head_dim;
  ASSIGN_OR_RETURN(const MatrixD hadamard, HadamardMatrix(dim));
  std::vector<MatrixD> matrices;
  for (int h = 0; h < block.kv_heads; ++h) {
    const MatrixD& c = moments[static_cast<size_t>(h)];
    MatrixD g = MatrixD::Zero(dim, dim);
    for (int q = h * block.group(); q < (h + 1) * block.group(); ++q) {
      const MatrixD columns = block[kO].weight.middleCols(q * dim, dim).cast<double>();
      g += columns.transpose() * columns;
    }
    const MatrixD root = OfEigenvalues(c, kSmallest, [](double x) { return std::sqrt(x); });
    const MatrixD back = OfEigenvalues(c, kSmallest, [](double x) { return 1 / std::sqrt(x); });
    const MatrixD middle =
        OfEigenvalues(root * g * root, kSmallest, [](double x) { return std::sqrt(x); });
    // M: the symmetric root of M^T M.
    MatrixD m =
        OfEigenvalues(back * middle * back, kSmallest, [](double x) { return std::sqrt(x); });
    m /= std::sqrt((m.transpose() * m).trace() / static_cast<double>(dim));  // of the size of 1
    matrices.push_back(hadamard * m);
  }
  return matrices;
}

}  // namespace qserve::quantizer::transform
