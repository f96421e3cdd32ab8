// Rounding one linear: the bound of the protected range over every group there can be, GPTQ and
// what follows it against round to nearest on inputs that depend on one another, corrections by
// least squares, and results that do not depend on threads.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/quant/rtn.h"
#include "quantizer/solve/gptq.h"
#include "quantizer/solve/grid.h"
#include "quantizer/solve/refine.h"
#include "worker/checkpoint/random_weights.h"

namespace qserve::quantizer::solve {
namespace {

using worker::checkpoint::Scheme;

constexpr Scheme kSchemes[] = {Scheme::kQoqGroup128, Scheme::kQoqPerChannel};

MatrixF Random(const char* name, int64_t rows, int64_t cols) {
  MatrixF m(rows, cols);
  worker::checkpoint::FillRandom(name, 1, {}, 0, {m.data(), static_cast<size_t>(m.size())});
  return m;
}

// x x^T of inputs that share a few directions, with channels of very different size.
MatrixD Correlated(int64_t k) {
  MatrixD mix = Random("mix", k, k / 8).cast<double>();
  for (int64_t i = 0; i < k; ++i)
    mix.row(i) *= 0.2 + 3.0 * std::pow(static_cast<double>(i % 13) / 12, 3);
  MatrixD moments = mix * mix.transpose();
  moments.diagonal().array() += 0.05;
  return moments;
}

SolveOptions Plain(Scheme scheme) {
  SolveOptions options;
  options.scheme = scheme;
  options.clip_search = false;
  options.free_zero = false;
  options.gptq = false;
  options.sweeps = 0;
  return options;
}

// The bytes that the two ends of a group of integers come back as.
std::pair<int, int> Ends(int low, int high) {
  const auto nearest = [](int a, int b) {
    return static_cast<int>(std::nearbyint(static_cast<float>(a) / static_cast<float>(b)));
  };
  const int step = std::max(1, nearest(high - low, 15));
  const int zero = std::clamp(nearest(-low, step), 0, 15);
  const auto back = [&](int value) {
    return (std::clamp(nearest(value, step) + zero, 0, 15) - zero) * step;
  };
  return {back(low), back(high)};
}

int Overflows(int limit) {
  int count = 0;
  for (int low = -limit; low <= 0; ++low) {
    for (int high = 0; high <= limit; ++high) {
      const auto [first, last] = Ends(low, high);
      count += (first < -128 ? 1 : 0) + (last > 127 ? 1 : 0);
    }
  }
  return count;
}

// Every range within +-119 stays in int8, and 119 is the largest such bound.
TEST(ProtectedRange, HoldsForEveryGroup) {
  EXPECT_EQ(Overflows(119), 0);
  EXPECT_GT(Overflows(120), 0);
}

// The same through the code that packs: one row, one group, every range.
TEST(ProtectedRange, HoldsInRoundToNearest) {
  MatrixF rows(120, 256);
  for (int low = 0; low < 120; ++low) {
    for (int64_t k = 0; k < 128; ++k)
      rows(low, k) = static_cast<float>(k % 120) - (k % 2 == 0 ? 0.0f : static_cast<float>(low));
    for (int64_t k = 128; k < 256; ++k) rows(low, k) = k % 2 == 0 ? 119.0f : -119.0f;
  }
  const auto rounded = kernels::RtnGroup128(rows.data(), rows.rows(), rows.cols());
  ASSERT_TRUE(rounded.ok());
  EXPECT_TRUE(kernels::Validate(*rounded).ok());
}

// A group that does not reach zero keeps its whole range: no error above half a step.
TEST(Grid, GroupsAwayFromZeroAreNotClipped) {
  for (const Scheme scheme : kSchemes) {
    MatrixF weights = Random("away", 8, 256);
    weights = (weights.array() * 0.2f + 1.0f).matrix();  // 0.8 .. 1.2
    weights.bottomRows(4) *= -1;
    for (const bool free_zero : {false, true}) {
      SolveOptions options = Plain(scheme);
      options.clip_search = true;
      options.free_zero = free_zero;
      options.smallest_ratio = 1;
      const auto rounded = ChooseGrid(weights, VectorF::Ones(256), options);
      ASSERT_TRUE(rounded.ok());
      ASSERT_TRUE(kernels::Validate(*rounded).ok());
      VectorF row(256);
      for (int64_t n = 0; n < weights.rows(); ++n) {
        kernels::DequantizeRow(*rounded, n, row.data());
        const float step = LevelsOf(*rounded, n, 0).step;
        EXPECT_LE((row.transpose() - weights.row(n)).cwiseAbs().maxCoeff(), 0.51f * step + 0.01f);
      }
    }
  }
}

TEST(Grid, SearchIsNeverWorseForTheWeightsThatCount) {
  const MatrixF weights = Random("weights", 32, 384);
  VectorF importance(384);
  for (int64_t k = 0; k < 384; ++k) importance[k] = k % 9 == 0 ? 10.0f : 0.1f;
  const MatrixD moments = importance.cast<double>().asDiagonal();
  for (const Scheme scheme : kSchemes) {
    SolveOptions options = Plain(scheme);
    const double nearest =
        RelativeError(weights, *ChooseGrid(weights, importance, options), moments);
    options.clip_search = true;
    const auto bound = *ChooseGrid(weights, importance, options);
    options.free_zero = true;
    const auto free = *ChooseGrid(weights, importance, options);
    EXPECT_TRUE(kernels::Validate(free).ok());
    EXPECT_LT(RelativeError(weights, bound, moments), nearest);
    EXPECT_LT(RelativeError(weights, free, moments), nearest);
  }
}

TEST(Gptq, BeatsRoundToNearestOnCorrelatedInputs) {
  const MatrixF weights = Random("weights", 48, 256);
  const MatrixD moments = Correlated(256);
  for (const Scheme scheme : kSchemes) {
    SolveOptions options = Plain(scheme);
    const double nearest = RelativeError(weights, *SolveLinear(weights, moments, options), moments);
    options.gptq = true;
    const double gptq = RelativeError(weights, *SolveLinear(weights, moments, options), moments);
    options.clip_search = options.free_zero = true;
    const double clipped = RelativeError(weights, *SolveLinear(weights, moments, options), moments);
    options.sweeps = 3;
    const auto best = *SolveLinear(weights, moments, options);
    EXPECT_TRUE(kernels::Validate(best).ok());
    EXPECT_LT(gptq, 0.6 * nearest);
    EXPECT_LT(clipped, gptq);
    EXPECT_LT(RelativeError(weights, best, moments), 0.97 * clipped);
  }
}

TEST(Gptq, ThreadsDoNotChangeABit) {
  const MatrixF weights = Random("weights", 70, 256);
  const MatrixD moments = Correlated(256);
  for (const Scheme scheme : kSchemes) {
    SolveOptions options;
    options.scheme = scheme;
    const auto one = *SolveLinear(weights, moments, options);
    options.threads = 3;
    const auto three = *SolveLinear(weights, moments, options);
    EXPECT_EQ(one.codes, three.codes);
    EXPECT_EQ(one.scale, three.scale);
    EXPECT_EQ(one.group_scale, three.group_scale);
    EXPECT_EQ(one.group_offset, three.group_offset);
    EXPECT_EQ(one.scaled_zero, three.scaled_zero);
  }
}

// Channels that calibration never saw: moments without full rank are damped, not refused.
TEST(Gptq, BearsInputsThatAreAlwaysZero) {
  const MatrixF weights = Random("weights", 32, 128);
  MatrixD moments = MatrixD::Zero(128, 128);
  moments.topLeftCorner(4, 4).setOnes();
  const auto rounded = SolveLinear(weights, moments, {.scheme = Scheme::kQoqGroup128});
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  EXPECT_TRUE(kernels::Validate(*rounded).ok());
  ASSERT_TRUE(SolveLinear(weights, MatrixD::Zero(128, 128), {}).ok());
  moments(3, 3) = NAN;
  EXPECT_EQ(SolveLinear(weights, moments, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

// Weights that make up for changed inputs: targets W x of inputs that arrive as B x.
TEST(Correct, FindsTheLeastSquaresWeights) {
  const MatrixF weights = Random("weights", 8, 32);
  const MatrixD x = Random("x", 200, 32).cast<double>();
  const MatrixD b = MatrixD::Identity(32, 32) + 0.1 * Random("b", 32, 32).cast<double>();
  const MatrixD seen = x * b;
  const MatrixD moments = seen.transpose() * seen / 200;
  const MatrixD change = weights.cast<double>() * (x - seen).transpose() * seen / 200;
  const auto corrected = Correct(weights, change, moments, 1e-9, 2);
  ASSERT_TRUE(corrected.ok()) << corrected.status();
  const MatrixD exact = x * weights.cast<double>().transpose();
  EXPECT_LT((seen * corrected->cast<double>().transpose() - exact).norm(), 1e-4 * exact.norm());
  EXPECT_GT((seen * weights.cast<double>().transpose() - exact).norm(), 1e-2 * exact.norm());
}

}  // namespace
}  // namespace qserve::quantizer::solve
