// Hadamard matrices: orthogonal for every size that models have, whatever the construction.
#include "quantizer/transform/hadamard.h"

#include <gtest/gtest.h>

namespace qserve::quantizer::transform {
namespace {

TEST(Hadamard, PaleyMatricesAreOrthogonal) {
  for (const int64_t m :
       {1, 4, 8, 12, 20, 24, 28, 36, 44, 48, 52, 60, 68, 72, 76, 80, 84, 100, 108}) {
    const std::vector<int8_t> h = PaleyHadamard(m);
    ASSERT_EQ(std::ssize(h), m * m) << m;
    for (int64_t a = 0; a < m; ++a) {
      for (int64_t b = 0; b < m; ++b) {
        int64_t dot = 0;
        for (int64_t i = 0; i < m; ++i) {
          const int8_t x = h[static_cast<size_t>(a * m + i)];
          ASSERT_TRUE(x == 1 || x == -1) << m;
          dot += x * h[static_cast<size_t>(b * m + i)];
        }
        ASSERT_EQ(dot, a == b ? m : 0) << m << ": rows " << a << ", " << b;
      }
    }
  }
  EXPECT_TRUE(PaleyHadamard(92).empty());
  EXPECT_TRUE(PaleyHadamard(6).empty());
}

// Hidden sizes of real models: 896 (Qwen2.5-0.5B), 1536, 2560, 3072, 3584, 5120, 6656 (Llama-30B).
TEST(Hadamard, RotatesEverySize) {
  for (const int64_t n :
       {1, 2, 12, 40, 64, 128, 256, 896, 1536, 2560, 3072, 3584, 5120, 6656, 8192}) {
    for (const uint64_t seed : {0u, 7u}) {
      const auto hadamard = Hadamard::Create(n, seed);
      ASSERT_TRUE(hadamard.ok()) << hadamard.status();
      // Two rows: lengths and the angle stay, and a single channel is spread evenly.
      MatrixF rows = MatrixF::Zero(2, n);
      rows(0, n / 3) = 1;
      for (int64_t i = 0; i < n; ++i) rows(1, i) = static_cast<float>((i * 37 + 11) % 23) - 9;
      const float length = rows.row(1).norm(), dot = rows.row(0).dot(rows.row(1));
      hadamard->ApplyToRows(rows, 2);
      EXPECT_NEAR(rows.row(1).norm(), length, 1e-5f * length) << n;
      EXPECT_NEAR(rows.row(0).dot(rows.row(1)), dot, 1e-5f * length) << n;
      const float even = 1 / std::sqrt(static_cast<float>(n));
      EXPECT_NEAR(rows.row(0).cwiseAbs().minCoeff(), even, 1e-6f) << n;
      EXPECT_NEAR(rows.row(0).cwiseAbs().maxCoeff(), even, 1e-6f) << n;
    }
  }
}

TEST(Hadamard, ColumnsAreTurnedAsRowsAre) {
  const auto hadamard = *Hadamard::Create(24, 3);
  MatrixF m(24, 5);
  for (int64_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i % 17) - 8;
  MatrixF rows = m.transpose(), columns = m;
  hadamard.ApplyToRows(rows, 1);
  hadamard.ApplyToColumns(columns, 2);
  EXPECT_EQ(columns, MatrixF(rows.transpose()));
}

TEST(Hadamard, SignsDependOnTheSeed) {
  MatrixF a = MatrixF::Identity(64, 64), b = a, c = a;
  Hadamard::Create(64, 1)->ApplyToRows(a, 1);
  Hadamard::Create(64, 1)->ApplyToRows(b, 1);
  Hadamard::Create(64, 2)->ApplyToRows(c, 1);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(Hadamard, RefusesSizesWithoutOne) {
  for (const int64_t n : {0, 3, 6, 23 * 4, 29 * 4 + 1}) {
    EXPECT_EQ(Hadamard::Create(n, 0).status().code(), absl::StatusCode::kInvalidArgument) << n;
  }
}

}  // namespace
}  // namespace qserve::quantizer::transform
