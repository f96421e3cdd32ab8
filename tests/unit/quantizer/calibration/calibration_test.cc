// Calibration: which windows, sums of outer products, int8 rounding, and that a block run by stages
// is the model's own block.
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "quantizer/calibration/gram.h"
#include "quantizer/calibration/windows.h"
#include "tests/unit/quantizer/transform/block_testing.h"
#include "worker/comm/local_communicator.h"
#include "worker/exec/direct_runner.h"

namespace qserve::quantizer::calibration {
namespace {

TEST(Windows, AreDrawnBySeedWithoutRepetition) {
  std::vector<int32_t> tokens(1050);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto all = *ChooseWindows(tokens, {.samples = 100, .length = 100, .seed = 1});
  ASSERT_EQ(all.size(), 10u);
  EXPECT_EQ(all[3].front(), 300);
  const auto some = *ChooseWindows(tokens, {.samples = 4, .length = 100, .seed = 1});
  const auto again = *ChooseWindows(tokens, {.samples = 4, .length = 100, .seed = 1});
  const auto other = *ChooseWindows(tokens, {.samples = 4, .length = 100, .seed = 2});
  EXPECT_EQ(some, again);
  EXPECT_NE(some, other);
  EXPECT_EQ(std::set<std::vector<int32_t>>(some.begin(), some.end()).size(), 4u);
  EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
  EXPECT_EQ(ChooseWindows(tokens, {.samples = 1, .length = 2000, .seed = 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Gram, AddsOuterProducts) {
  const auto backend = *kernels::CreateBackend({.device = "cpu", .threads = 2});
  const MatrixF a = MatrixF::Random(50, 33), b = MatrixF::Random(50, 20);
  MatrixD sum;
  ASSERT_TRUE(AddGram(*backend, a, b, sum).ok());
  ASSERT_TRUE(AddGram(*backend, a, b, sum).ok());
  const MatrixD exact = 2 * a.cast<double>().transpose() * b.cast<double>();
  EXPECT_LT((sum - exact).cwiseAbs().maxCoeff(), 1e-4);
}

TEST(Int8, RoundsEachRowByItsLargest) {
  MatrixF x(2, 3);
  x << 127, -63.4f, 0.2f, 0, 0, 0;
  SimulateInt8(x);
  MatrixF expected(2, 3);
  expected << 127, -63, 0, 0, 0, 0;
  EXPECT_EQ(x, expected);
}

// The residual stream after the model's blocks, run by stages, gives the model's logits.
TEST(BlockRunner, RunsTheModelsOwnBlocks) {
  for (const std::string& config : SmallModels()) {
    BlockFixture fixture(config);
    const auto& checkpoint = fixture.checkpoint();
    const std::vector<int32_t> ids = {5, 90, 17, 3, 3, 44, 61, 8};
    auto backend = *kernels::CreateBackend({.device = "cpu", .threads = 1});
    worker::comm::LocalCommunicator alone(backend.get());
    auto runner = *worker::exec::DirectRunner::Create(
        checkpoint, *backend, alone,
        {.max_tokens = 64, .kv_cache = worker::exec::KvCacheType::kFp32});
    const std::vector<float> logits = *runner->Logits(ids);

    MatrixF hidden(std::ssize(ids), 128);
    for (size_t t = 0; t < ids.size(); ++t) {
      hidden.row(static_cast<int64_t>(t)) =
          *ReadMatrixRows(checkpoint, "model.embed_tokens.weight", {ids[t], ids[t] + 1}, 128);
    }
    for (int64_t layer = 0; layer < 2; ++layer)
      hidden = fixture.Run(*ReadBlock(checkpoint, layer, 1), hidden);
    const std::vector<float> gain = *checkpoint.ReadVector("model.norm.weight", 128);
    const MatrixF head = *ReadMatrixRows(
        checkpoint,
        checkpoint.Has("lm_head.weight") ? "lm_head.weight" : "model.embed_tokens.weight", {0, 96},
        128);
    for (int64_t t = 0; t < hidden.rows(); ++t) {
      VectorF x = hidden.row(t).transpose();
      x /= std::sqrt(x.squaredNorm() / 128 + checkpoint.config().rms_norm_eps);
      x.array() *= Eigen::Map<const VectorF>(gain.data(), 128).array();
      const VectorF here = head * x;
      const Eigen::Map<const VectorF> there(logits.data() + t * 96, 96);
      EXPECT_LT((here - there).cwiseAbs().maxCoeff(), 1e-4f * there.cwiseAbs().maxCoeff() + 1e-4f);
    }
  }
}

}  // namespace
}  // namespace qserve::quantizer::calibration
