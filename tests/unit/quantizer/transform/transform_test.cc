// Every transform leaves a block's function as it is, for grouped heads, biases and q/k norms, and
// does what it is for.
#include <gtest/gtest.h>

#include "quantizer/block_transformer.h"
#include "quantizer/output_smoother.h"
#include "quantizer/transform/fold.h"
#include "quantizer/transform/smooth.h"
#include "quantizer/transform/value_transform.h"
#include "tests/unit/quantizer/transform/block_testing.h"

namespace qserve::quantizer {
namespace {

using transform::TransformOptions;
using transform::ValueTransform;

constexpr float kTolerance = 2e-5f;

TransformOptions Nothing() {
  TransformOptions options;
  options.rotate = false;
  options.values = ValueTransform::kNone;
  options.attention.enabled = false;
  return options;
}

class TransformTest : public ::testing::TestWithParam<std::string> {
 protected:
  TransformTest() : fixture_(GetParam()), hidden_(BlockFixture::Hidden(128)) {}

  // The block after TransformBlock computes what it did.
  void ExpectPreserved(const TransformOptions& options) {
    const BlockWeights before = fixture_.Block();
    BlockWeights after = before;
    const absl::Status status =
        TransformBlock(options, {}, kernels::KvFormat::kInt4, &fixture_.runner(), {hidden_}, after);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_LT(Difference(fixture_.Run(after, hidden_), fixture_.Run(before, hidden_)), kTolerance);
    bool changed = before.k_gain != after.k_gain;
    for (size_t i = 0; i < kLinearCount; ++i)
      changed = changed || before.linears[i].weight != after.linears[i].weight;
    EXPECT_TRUE(changed);
  }

  BlockFixture fixture_;
  MatrixF hidden_;
};

TEST_P(TransformTest, FoldingGains) {
  const BlockWeights before = fixture_.Block();
  BlockWeights after = before;
  transform::FoldNormGains(after);
  EXPECT_EQ(after.input_gain, VectorF::Ones(128));
  EXPECT_EQ(after.post_attention_gain, VectorF::Ones(128));
  EXPECT_NE(before.input_gain, after.input_gain);
  EXPECT_LT(Difference(fixture_.Run(after, hidden_), fixture_.Run(before, hidden_)), kTolerance);
}

TEST_P(TransformTest, Rotation) {
  BlockWeights block = fixture_.Block();
  transform::FoldNormGains(block);
  MatrixF exact = fixture_.Run(block, hidden_);
  const auto rotation = *transform::Hadamard::Create(128, 5);
  transform::RotateResidual(rotation, block, 2);
  MatrixF turned = hidden_;
  rotation.ApplyToRows(turned, 1);
  rotation.ApplyToRows(exact, 1);
  EXPECT_LT(Difference(fixture_.Run(block, turned), exact), kTolerance);
}

TEST_P(TransformTest, Values) {
  TransformOptions options = Nothing();
  options.values = ValueTransform::kHadamard;
  ExpectPreserved(options);
  options.values = ValueTransform::kBalanced;
  ExpectPreserved(options);
}

TEST_P(TransformTest, SmoothAttention) {
  TransformOptions options = Nothing();
  options.attention = {.enabled = true, .alpha = 0.5, .beta = 0};
  ExpectPreserved(options);
  options.attention = {.enabled = true, .alpha = 0.6, .beta = 0.3};
  ExpectPreserved(options);
  options.attention.search = true;
  options.attention.steps = 3;
  ExpectPreserved(options);
}

TEST_P(TransformTest, OutputSmoothingAndOrder) {
  TransformOptions options = Nothing();
  options.o_proj = {.enabled = true, .alpha = 0.3, .beta = 0.7};
  ExpectPreserved(options);
  options = Nothing();
  options.down_proj = {.enabled = true, .alpha = 0.3, .beta = 0.7};
  ExpectPreserved(options);
  options = Nothing();
  options.reorder = true;
  ExpectPreserved(options);
  options.o_proj.enabled = options.down_proj.enabled = options.attention.enabled = true;
  options.values = ValueTransform::kBalanced;
  ExpectPreserved(options);
}

// Smoothing that is searched for is done where inputs of down_proj are unlike one another, and only
// there.
TEST_P(TransformTest, OutputSmoothingIsSearchedFor) {
  TransformOptions options = Nothing();
  options.down_proj = {.enabled = true, .search = true, .steps = 3};
  BlockWeights block = fixture_.Block();
  const MatrixF exact = fixture_.Run(block, hidden_);
  const auto transform = [&] {
    return TransformBlock(options, {}, kernels::KvFormat::kInt4, &fixture_.runner(), {hidden_},
                          block);
  };
  const MatrixF down = block[kDown].weight;
  ASSERT_TRUE(transform().ok());
  EXPECT_EQ(block[kDown].weight, down);

  VectorF outliers = VectorF::Ones(down.cols());
  for (int64_t i = 5; i < outliers.size(); i += 50) outliers[i] = 1.0f / 50;
  transform::ScaleFeedForward(outliers, block);
  const auto error = [&]() -> double {
    const auto device = *fixture_.runner().Load(block, kernels::KvFormat::kF32);
    const MatrixF inputs = *fixture_.runner().Input(device, calibration::Stage::kDown, hidden_);
    const VectorF ones = VectorF::Ones(inputs.cols());
    const MatrixF outputs = inputs * block[kDown].weight.transpose();
    return *SmoothedError(block[kDown].weight, inputs, outputs, ones, {},
                          fixture_.runner().backend());
  };
  const double spoilt = error();
  ASSERT_TRUE(transform().ok());
  EXPECT_LT(error(), 0.5 * spoilt);
  EXPECT_LT(Difference(fixture_.Run(block, hidden_), exact), kTolerance);
}

// Values that o_proj reads are scaled alike for all query heads of a group, searched for or not.
TEST_P(TransformTest, ValueSmoothingIsSearchedFor) {
  BlockWeights block = fixture_.Block();
  const MatrixF exact = fixture_.Run(block, hidden_);
  VectorF outliers = VectorF::Ones(block.kv_heads * block.head_dim);
  for (int64_t i = 3; i < outliers.size(); i += 20) outliers[i] = 1.0f / 50;
  transform::ScaleValues(outliers, block);
  const MatrixF spoilt = block[kO].weight;
  TransformOptions options = Nothing();
  options.o_proj = {.enabled = true, .search = true, .steps = 3};
  ASSERT_TRUE(
      TransformBlock(options, {}, kernels::KvFormat::kInt4, &fixture_.runner(), {hidden_}, block)
          .ok());
  EXPECT_NE(block[kO].weight, spoilt);
  EXPECT_LT(Difference(fixture_.Run(block, hidden_), exact), kTolerance);
}

// Keys of one pair of channels 20 times as large: 4 bits for the head are spent on them, and
// SmoothAttention gives them back. Biases are scaled with the weights.
TEST_P(TransformTest, SmoothAttentionSavesKeysWithOutliers) {
  BlockWeights block = fixture_.Block();
  VectorF outliers = VectorF::Ones(block.kv_heads * block.head_dim);
  for (int h = 0; h < block.kv_heads; ++h) {
    for (const int64_t i : {3, 3 + block.head_dim / 2}) outliers[h * block.head_dim + i] = 0.05f;
  }
  const MatrixF exact = fixture_.Run(block, hidden_);
  transform::ScaleAttention(outliers, block);
  ASSERT_LT(Difference(fixture_.Run(block, hidden_), exact), 10 * kTolerance);
  const float spoilt = (fixture_.Run(block, hidden_, kernels::KvFormat::kInt4) - exact).norm();
  TransformOptions options = Nothing();
  options.attention = {.enabled = true, .alpha = 1, .beta = 0};
  ASSERT_TRUE(
      TransformBlock(options, {}, kernels::KvFormat::kInt4, &fixture_.runner(), {hidden_}, block)
          .ok());
  const float saved = (fixture_.Run(block, hidden_, kernels::KvFormat::kInt4) - exact).norm();
  EXPECT_LT(saved, 0.8f * spoilt);
}

std::string NameOf(const ::testing::TestParamInfo<std::string>& model) {
  const char* const names[] = {"Llama", "LlamaBiases", "Qwen2", "Qwen3"};
  return names[model.index];
}
INSTANTIATE_TEST_SUITE_P(Models, TransformTest, ::testing::ValuesIn(SmallModels()), NameOf);

// The scales of a pair of channels that rotation mixes are equal, and one set serves every head
// where the gains are shared.
TEST(AttentionScales, ArePairEqual) {
  for (const std::string& config : SmallModels()) {
    BlockFixture fixture(config);
    const BlockWeights block = fixture.Block();
    const int64_t dim = block.head_dim;
    VectorF q(block.heads * dim), k(block.kv_heads * dim);
    for (int64_t i = 0; i < q.size(); ++i) q[i] = 1 + static_cast<float>(i % 7);
    for (int64_t i = 0; i < k.size(); ++i) k[i] = 1 + static_cast<float>(i % 11);
    const VectorF lambda = transform::AttentionScales(block, q, k, 0.5, 0.25);
    for (int h = 0; h < block.kv_heads; ++h) {
      for (int64_t i = 0; i < dim / 2; ++i) {
        EXPECT_EQ(lambda[h * dim + i], lambda[h * dim + dim / 2 + i]);
        if (block.k_gain.size() == 0) continue;
        EXPECT_EQ(lambda[h * dim + i], lambda[i]);
      }
    }
  }
}

}  // namespace
}  // namespace qserve::quantizer
