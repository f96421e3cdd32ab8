// Clipping of q_proj and k_proj by the attention output: no kv head comes out worse, some come out
// better, and what is left behind is what the errors were measured with.
#include "quantizer/attention_clip.h"

#include <gtest/gtest.h>

#include "quantizer/solve/gptq.h"
#include "tests/unit/quantizer/transform/block_testing.h"

namespace qserve::quantizer {
namespace {

using calibration::DeviceBlock;
using calibration::Stage;
using worker::checkpoint::Scheme;

// A block rounded linear by linear, and how to round its q and k again with a fixed ratio.
class ClipFixture {
 public:
  ClipFixture(const std::string& config, Scheme scheme) : fixture_(config) {
    options_.scheme = scheme;
    block_ = fixture_.Block();
    hidden_ = {BlockFixture::Hidden(128), BlockFixture::Hidden(128).rowwise().reverse()};
    exact_ = *fixture_.runner().Load(block_, kernels::KvFormat::kF32);
    rounded_ = *fixture_.runner().Load(block_, kernels::KvFormat::kInt4);
    moments_ = MatrixD::Zero(128, 128);
    for (const MatrixF& hidden : hidden_) {
      const MatrixF x = *fixture_.runner().Input(exact_, Stage::kQkv, hidden);
      moments_ += (x.transpose() * x).cast<double>() / static_cast<double>(2 * x.rows());
    }
    for (const LinearIndex i : {kQ, kK, kV}) linears_[i] = Solve(i, 0);
  }

  absl::StatusOr<AttentionClipErrors> Clip(const SolveClipped& solve) {
    return ClipByAttention({.enabled = true},
                           {.block = block_,
                            .runner = fixture_.runner(),
                            .exact = exact_,
                            .rounded = rounded_,
                            .exact_hidden = hidden_,
                            .rounded_hidden = hidden_},
                           solve, linears_);
  }

  kernels::LinearWeight Solve(LinearIndex i, double ratio) const {
    solve::SolveOptions options = options_;
    options.fixed_ratio = ratio;
    kernels::LinearWeight rounded = *solve::SolveLinear(block_[i].weight, moments_, options);
    rounded.bias.assign(block_[i].bias.begin(), block_[i].bias.end());
    return rounded;
  }

  const kernels::LinearWeight& linear(LinearIndex i) const { return linears_[i]; }

 private:
  BlockFixture fixture_;
  solve::SolveOptions options_;
  BlockWeights block_;
  std::vector<MatrixF> hidden_;
  DeviceBlock exact_, rounded_;
  MatrixD moments_;
  std::array<kernels::LinearWeight, kLinearCount> linears_;
};

TEST(AttentionClip, MakesNoHeadWorseAndSomeBetter) {
  for (const Scheme scheme : {Scheme::kQoqGroup128, Scheme::kQoqPerChannel}) {
    double before = 0, after = 0;
    for (const std::string& config : SmallModels()) {
      ClipFixture fixture(config, scheme);
      const auto errors =
          fixture.Clip([&](LinearIndex i, double ratio) { return fixture.Solve(i, ratio); });
      ASSERT_TRUE(errors.ok()) << errors.status();
      EXPECT_TRUE((errors->after.array() <= errors->before.array()).all());
      before += errors->before.sum();
      after += errors->after.sum();
      for (const LinearIndex i : {kQ, kK}) EXPECT_TRUE(Validate(fixture.linear(i)).ok());

      // Measured anew, heads put together from several candidates err as was said.
      const auto again = fixture.Clip([&](LinearIndex i, double) { return fixture.linear(i); });
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_LT((again->before - errors->after).cwiseAbs().maxCoeff(),
                1e-4 * errors->after.maxCoeff());
    }
    EXPECT_LT(after, 0.99 * before);
  }
}

TEST(AttentionClip, RefusesWhatCannotBeRounded) {
  ClipFixture fixture(SmallModels().front(), Scheme::kQoqPerChannel);
  const auto errors = fixture.Clip([](LinearIndex, double) {
    return absl::StatusOr<kernels::LinearWeight>(absl::InvalidArgumentError("no"));
  });
  EXPECT_EQ(errors.status().code(), absl::StatusCode::kInvalidArgument);
}

// A fixed ratio narrows the range of every row: its steps are that much smaller.
TEST(AttentionClip, FixedRatioNarrowsTheRange) {
  const MatrixF weights = MatrixF::Random(32, 128);
  solve::SolveOptions options;
  options.scheme = Scheme::kQoqPerChannel;
  options.gptq = false;
  const MatrixD moments = MatrixD::Identity(128, 128);
  options.fixed_ratio = 1;
  const auto whole = *solve::SolveLinear(weights, moments, options);
  options.fixed_ratio = 0.5;
  const auto half = *solve::SolveLinear(weights, moments, options);
  for (size_t n = 0; n < 32; ++n) EXPECT_NEAR(half.scale[n] / whole.scale[n], 0.5, 0.06);
}

}  // namespace
}  // namespace qserve::quantizer
