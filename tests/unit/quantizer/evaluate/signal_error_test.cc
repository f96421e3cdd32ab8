// Errors of signals up to rotation, gains and maps of heads, on signals made up here.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cmath>
#include <random>

#include "quantizer/evaluate/signal_error.h"

namespace qserve::quantizer {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int64_t kTokens = 4000, kColumns = 16, kHeadDim = 8;

RowMajor Random(int64_t rows, int64_t cols, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  return RowMajor::NullaryExpr(rows, cols, [&] { return normal(random); });
}

kernels::Matrix<const float> View(const RowMajor& m) {
  return {m.data(), m.rows(), m.cols(), m.cols()};
}

// Noise a hundredth as large: 40 dB. Added in two steps, as the report does.
double Ratio(SignalError& error, const RowMajor& reference, const RowMajor& values) {
  for (const int64_t begin : {int64_t{0}, kTokens / 2}) {
    const RowMajor a = reference.middleRows(begin, kTokens / 2);
    const RowMajor b = values.middleRows(begin, kTokens / 2);
    error.Add(View(a), View(b));
  }
  return error.snr_db();
}

class SignalErrorTest : public ::testing::Test {
 protected:
  const RowMajor reference_ = Random(kTokens, kColumns, 1, 1);
  const RowMajor noise_ = Random(kTokens, kColumns, 0.01f, 2);
};

TEST_F(SignalErrorTest, AsItIs) {
  EXPECT_NEAR(Ratio(*DirectError(), reference_, reference_ + noise_), 40, 0.2);
  EXPECT_TRUE(std::isinf(Ratio(*DirectError(), reference_, reference_)));
}

TEST_F(SignalErrorTest, UpToGains) {
  const Eigen::ArrayXf gains = Eigen::ArrayXf::LinSpaced(kColumns, 0.5, 3);
  const RowMajor values = (reference_ + noise_) * gains.matrix().asDiagonal();
  EXPECT_LT(Ratio(*DirectError(), reference_, values), 10);
  EXPECT_NEAR(Ratio(*UpToGains(), reference_, values), 40, 0.2);
}

TEST_F(SignalErrorTest, UpToMapsOfHeads) {
  RowMajor map = RowMajor::Zero(kColumns, kColumns);
  map.topLeftCorner(kHeadDim, kHeadDim) = Random(kHeadDim, kHeadDim, 1, 3);
  map.bottomRightCorner(kHeadDim, kHeadDim) = Random(kHeadDim, kHeadDim, 1, 4);
  const RowMajor values = (reference_ + noise_) * map;
  EXPECT_NEAR(Ratio(*UpToHeadMaps(kHeadDim), reference_, values), 40, 0.3);
  EXPECT_LT(Ratio(*UpToGains(), reference_, values), 10);
  // What crosses heads is an error.
  map(0, kColumns - 1) = 1;
  EXPECT_LT(Ratio(*UpToHeadMaps(kHeadDim), reference_, reference_ * map), 30);
}

TEST_F(SignalErrorTest, Turned) {
  const RowMajor map = Random(kColumns, kColumns, 1, 5);
  const Eigen::MatrixXd rotation = map.cast<double>();
  EXPECT_NEAR(Ratio(*Turned(rotation), reference_, (reference_ + noise_) * map), 40, 0.5);
}

}  // namespace
}  // namespace qserve::quantizer
