// kernels/ops.cc refuses what does not fit, names it, runs nothing, and lets through what fits.
#include <gtest/gtest.h>

#include <functional>

#include "kernels/device_factory.h"
#include "kernels/ops.h"

namespace qserve::kernels::testing {
namespace {

class OpsCheck : public ::testing::Test {
 protected:
  void SetUp() override {
    auto created = CreateBackend({.device = "cpu", .threads = 1, .cpu_isa = "reference"});
    ASSERT_TRUE(created.ok());
    backend_ = *std::move(created);
  }
  // The status of one step that runs `call`.
  Status Run(const std::function<void(Backend&)>& call) {
    return backend_->Run(0, [&] { call(*backend_); });
  }
  void ExpectRefused(const std::function<void(Backend&)>& call, const std::string& reason) {
    const Status status = Run(call);
    EXPECT_FALSE(status.ok()) << reason;
    EXPECT_NE(status.message().find(reason), std::string::npos) << status.message();
  }
  std::unique_ptr<Backend> backend_;
  alignas(64) float floats_[4096] = {};
  alignas(64) float out_[1024] = {};
  alignas(64) int8_t codes_[1024] = {};
  float scale_[8] = {};
  int32_t row_sum_[8] = {};
};

TEST_F(OpsCheck, Norm) {
  const NormArgs good{.residual = {floats_, 2, 64, 64},
                      .gain = floats_ + 512,
                      .epsilon = 1e-5f,
                      .out = {.rows = 2, .cols = 64, .f32 = out_, .f32_stride = 64}};
  EXPECT_TRUE(Run([&](Backend& b) { ops::Norm(b, good); }).ok());
  NormArgs bad = good;
  bad.out.cols = 63;
  ExpectRefused([&](Backend& b) { ops::Norm(b, bad); }, "Norm: output differs");
  bad = good;
  bad.out.f32 = floats_;
  ExpectRefused([&](Backend& b) { ops::Norm(b, bad); }, "overlaps");
  bad = good;
  const int32_t rows[] = {0, 2};
  bad.rows = rows;
  ExpectRefused([&](Backend& b) { ops::Norm(b, bad); }, "row outside");
  bad = good;
  bad.out = {
      .rows = 2, .cols = 64, .q = codes_, .q_stride = 100, .scale = scale_, .row_sum = row_sum_};
  ExpectRefused([&](Backend& b) { ops::Norm(b, bad); }, "multiple of 128");
  bad.out.q_stride = 128;
  EXPECT_TRUE(Run([&](Backend& b) { ops::Norm(b, bad); }).ok());
  bad.out.lead = 100;  // 164 columns need 256
  ExpectRefused([&](Backend& b) { ops::Norm(b, bad); }, "multiple of 128");
}

TEST_F(OpsCheck, TheFirstFailureStaysAndNothingRunsAfterIt) {
  const NormArgs good{.residual = {floats_, 1, 64, 64},
                      .gain = floats_ + 512,
                      .epsilon = 1e-5f,
                      .out = {.rows = 1, .cols = 64, .f32 = out_, .f32_stride = 64}};
  NormArgs bad = good;
  bad.gain = nullptr;
  out_[0] = 42;
  const Status status = Run([&](Backend& b) {
    ops::Norm(b, bad);
    bad.residual.cols = -1;
    ops::Norm(b, bad);
    ops::Norm(b, good);
  });
  EXPECT_EQ(status.message(), "Norm: no gain");
  EXPECT_EQ(out_[0], 42);
  EXPECT_TRUE(Run([&](Backend& b) { ops::Norm(b, good); }).ok()) << "Run clears it";
}

TEST_F(OpsCheck, SequencesAndPages) {
  const KvShape kv{KvFormat::kInt4, 1, 64};
  std::vector<uint8_t> pages(static_cast<size_t>(KvPageBytes(kv)) * 3);
  const std::vector<int32_t> table = {2, 0};
  const std::vector<int32_t> freed = {-1, 0};
  SequenceSpan span{0, 2, 70, table};
  AttentionArgs good{.q = {floats_, 2, 128, 128},
                     .heads = 2,
                     .kv = kv,
                     .scale = 0.125f,
                     .sequences = {&span, 1},
                     .layer = {pages.data(), KvPageBytes(kv)},
                     .out = {.rows = 2, .cols = 128, .f32 = out_, .f32_stride = 128}};
  const auto attend = [&](Backend& b) { ops::Attention(b, good); };
  EXPECT_TRUE(Run(attend).ok());
  span.row_count = 1;
  ExpectRefused(attend, "cover the rows");
  span.row_count = 2, span.first_row = 1;
  ExpectRefused(attend, "in order");
  span.first_row = 0, span.first_position = 127;
  ExpectRefused(attend, "does not reach");
  span.first_position = 70, span.block_table = freed;
  ExpectRefused(attend, "negative page");
  good.sliding_window = 7;  // positions 64.. alone are seen
  EXPECT_TRUE(Run(attend).ok());
  good.sliding_window = 8;
  ExpectRefused(attend, "negative page");
  span.block_table = table;
  good.layer.page_bytes = KvPageBytes(kv) - 1;
  ExpectRefused(attend, "KV pages smaller");
  good.layer.page_bytes = KvPageBytes(kv), good.kv.kv_heads = 3;
  ExpectRefused(attend, "multiple of kv heads");
  good.kv.kv_heads = 1, good.kv.head_dim = 80, good.q.cols = 160;
  EXPECT_EQ(Run(attend).code(), StatusCode::kUnsupported);
}

TEST_F(OpsCheck, EmbedSiluAndSample) {
  const int32_t ids[] = {1, ~0};
  EmbedArgs embed{
      .table = {floats_, FloatType::kF32, 0, 4, 16}, .token_ids = ids, .out = {out_, 2, 16, 16}};
  ExpectRefused([&](Backend& b) { ops::Embed(b, embed); }, "slot");
  const SiluMulArgs silu{.gate_up = {floats_, 1, 64, 64},
                         .out = {.rows = 1, .cols = 33, .f32 = out_, .f32_stride = 64}};
  ExpectRefused([&](Backend& b) { ops::SiluMul(b, silu); }, "twice");
  SampleRow row;
  std::vector<SampledToken> results;
  const SampleArgs sample{
      .logits = {floats_, 1, 64, 64}, .vocab_size = 60, .rows = {&row, 1}, .results = &results};
  const auto run = [&](Backend& b) { ops::Sample(b, sample); };
  EXPECT_TRUE(Run(run).ok());
  row.top_p = 0;
  ExpectRefused(run, "top_p");
  row.top_p = 1, row.temperature = -1;
  ExpectRefused(run, "temperature");
  const int32_t outside[] = {60};
  row.temperature = 1, row.banned_ids = outside;
  ExpectRefused(run, "outside the vocabulary");
}

TEST_F(OpsCheck, ZeroRowsAreLegal) {
  EXPECT_TRUE(
      Run([&](Backend& b) {
        ops::Norm(
            b, {.residual = {nullptr, 0, 64, 64}, .gain = floats_, .out = {.rows = 0, .cols = 64}});
        ops::SiluMul(b, {.gate_up = {nullptr, 0, 64, 64}, .out = {.rows = 0, .cols = 32}});
        ops::Sample(b, {.logits = {nullptr, 0, 64, 64},
                        .vocab_size = 60,
                        .rows = {},
                        .sampled_ids = row_sum_});
      }).ok());
}

}  // namespace
}  // namespace qserve::kernels::testing
