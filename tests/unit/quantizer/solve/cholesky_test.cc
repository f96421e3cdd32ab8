// Factors of matrices of several blocks and a rest, against what they are factors of.
#include <gtest/gtest.h>

#include "quantizer/solve/cholesky.h"

namespace qserve::quantizer::solve {
namespace {

constexpr int64_t kSize = 300;

MatrixD Positive() {
  MatrixD m(kSize, kSize);
  for (int64_t i = 0; i < kSize; ++i) {
    for (int64_t j = 0; j < kSize; ++j)
      m(i, j) = 1.0 / static_cast<double>(1 + (i > j ? i - j : j - i)) + (i == j ? 1.0 : 0.0);
  }
  return m;
}

MatrixD Lower(const MatrixD& m) { return MatrixD(m.triangularView<Eigen::Lower>()); }

TEST(Cholesky, FactorsInvertsAndSolves) {
  const MatrixD matrix = Positive();
  MatrixD factor = matrix;
  ASSERT_TRUE(FactorLower(factor, 2));
  const MatrixD lower = Lower(factor);
  EXPECT_LT((lower * lower.transpose() - matrix).norm(), 1e-12 * matrix.norm());
  const MatrixD inverse = InverseOfLower(factor, 2);
  EXPECT_LT((inverse * lower - MatrixD::Identity(kSize, kSize)).norm(), 1e-10);
  const MatrixD wanted = matrix.leftCols(150);
  MatrixD right = matrix * wanted;
  SolveByLower(factor, right, 2);
  EXPECT_LT((right - wanted).norm(), 1e-10 * wanted.norm());
}

TEST(Cholesky, ThreadsDoNotChangeABit) {
  MatrixD one = Positive(), three = one;
  ASSERT_TRUE(FactorLower(one, 1) && FactorLower(three, 3));
  EXPECT_EQ(Lower(one), Lower(three));
  EXPECT_EQ(InverseOfLower(one, 1), InverseOfLower(one, 3));
  MatrixD once = Positive(), thrice = once;
  SolveByLower(one, once, 1);
  SolveByLower(one, thrice, 3);
  EXPECT_EQ(once, thrice);
}

TEST(Cholesky, RefusesWhatIsNotPositive) {
  MatrixD matrix = Positive();
  matrix(280, 280) = -1;  // in the last block
  EXPECT_FALSE(FactorLower(matrix, 2));
}

}  // namespace
}  // namespace qserve::quantizer::solve
