// Every implementation of the floating-point operations against the reference: equal to the bit for
// any number of threads. Instruction sets that the machine lacks are skipped by name; `emulated`
// runs their algorithm all the same.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "common/philox.h"
#include "kernels/quant/half.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::testing {
namespace {

class FloatParity : public ::testing::TestWithParam<FloatOps> {
 protected:
  void SetUp() override {
    if (!GetParam().present) GTEST_SKIP() << "this machine has no " << GetParam().name;
    RecordProperty("isa", GetParam().name);
  }
  const FloatOps reference_ = ReferenceOps();
};

constexpr int64_t kRaggedColumns[] = {1, 15, 16, 17, 100, 256, 333};

TEST_P(FloatParity, Embed) {
  for (const FloatType type : {FloatType::kF32, FloatType::kF16, FloatType::kBf16}) {
    for (const int64_t cols : kRaggedColumns) {
      const std::vector<float> values = RandomFloats(20 * cols, 3);
      std::vector<uint16_t> narrow;
      for (const float v : values)
        narrow.push_back(type == FloatType::kF16 ? FloatToHalf(v) : FloatToBf16(v));
      const void* data =
          type == FloatType::kF32 ? static_cast<const void*>(values.data()) : narrow.data();
      const std::vector<int32_t> ids = {100, 119, 99, 120, ~0, ~2, 107};
      const int32_t sampled[] = {103, 0, 118};
      const auto run = [&](const FloatOps& ops, int threads) {
        Rig rig(threads);
        std::vector<float> out(ids.size() * static_cast<size_t>(cols + 1), -5.0f);
        const Status status =
            ops.embed(rig.context, {.table = {data, type, 100, 20, cols},
                                    .token_ids = ids,
                                    .sampled_ids = sampled,
                                    .out = {out.data(), std::ssize(ids), cols, cols + 1}});
        EXPECT_TRUE(status.ok());
        return out;
      };
      const std::vector<float> expected = run(reference_, 1);
      EXPECT_EQ(expected[static_cast<size_t>(2 * (cols + 1))], 0.0f)
          << "ids of other ranks give zeros";
      EXPECT_EQ(expected[static_cast<size_t>(4 * (cols + 1))],
                expected[static_cast<size_t>(4 * (cols + 1))]);
      for (const int threads : {1, 3})
        EXPECT_EQ(run(GetParam(), threads), expected) << "cols=" << cols;
    }
  }
}

TEST_P(FloatParity, Norm) {
  for (const int64_t cols : kRaggedColumns) {
    for (const bool gather : {false, true}) {
      for (const bool delta : {false, true}) {
        const std::vector<int32_t> rows =
            gather ? std::vector<int32_t>{6, 2, 2} : std::vector<int32_t>{};
        const int64_t out_rows = gather ? 3 : 7;
        const auto run = [&](const FloatOps& ops, int threads, Output& out) {
          Rig rig(threads);
          std::vector<float> residual = RandomFloats(7 * (cols + 2), 1),
                             change = RandomFloats(7 * cols, 2);
          std::fill_n(residual.begin(), cols, 0.0f);  // a row of zeros
          const std::vector<float> gain = RandomFloats(cols, 4);
          const Status status =
              ops.norm(rig.context, {.residual = {residual.data(), 7, cols, cols + 2},
                                     .delta = {delta ? change.data() : nullptr, 7, cols, cols},
                                     .gain = gain.data(),
                                     .epsilon = 1e-5f,
                                     .rows = rows,
                                     .out = out.view});
          EXPECT_TRUE(status.ok());
          return residual;
        };
        for (const auto& [floats, codes, lead] :
             {std::tuple{true, false, 0}, {false, true, 5}, {true, true, 96}}) {
          Output expected(out_rows, cols, floats, codes, lead);
          const std::vector<float> residual = run(reference_, 1, expected);
          for (const int threads : {1, 2, 3}) {
            Output got(out_rows, cols, floats, codes, lead);
            EXPECT_EQ(run(GetParam(), threads, got), residual);
            EXPECT_TRUE(got == expected)
                << "cols=" << cols << " gather=" << gather << " codes=" << codes;
          }
        }
      }
    }
  }
}

TEST_P(FloatParity, SiluMul) {
  for (const int64_t cols : kRaggedColumns) {
    std::vector<float> gate_up = RandomFloats(5 * (2 * cols + 1), 9, 8.0f);
    gate_up[0] = -200;  // exp overflows towards 0
    std::fill_n(gate_up.begin() + 2 * (2 * cols + 1), cols, 0.0f);
    for (const auto& [floats, codes] : {std::pair{true, false}, {false, true}, {true, true}}) {
      const auto run = [&](const FloatOps& ops, int threads, Output& out) {
        Rig rig(threads);
        EXPECT_TRUE(
            ops.silu_mul(rig.context,
                         {.gate_up = {gate_up.data(), 5, 2 * cols, 2 * cols + 1}, .out = out.view})
                .ok());
      };
      Output expected(5, cols, floats, codes, 32);
      run(reference_, 1, expected);
      for (const int threads : {1, 2, 3}) {
        Output got(5, cols, floats, codes, 32);
        run(GetParam(), threads, got);
        EXPECT_TRUE(got == expected) << "cols=" << cols << " codes=" << codes;
      }
    }
  }
}

TEST_P(FloatParity, RopeAppendWritesTheSameBytes) {
  for (const AttentionCase& c : AttentionCases()) {
    KvWorld expected(c, 1100);
    Rig one(1);
    KvWorld::Step expected_step = expected.MakeStep(c.sequences);
    ASSERT_TRUE(expected.Append(reference_, one, expected_step).ok());
    for (const int threads : {1, 2, 3}) {
      Rig rig(threads);
      KvWorld world(c, 1100);
      KvWorld::Step step = world.MakeStep(c.sequences);
      ASSERT_TRUE(world.Append(GetParam(), rig, step).ok());
      EXPECT_EQ(world.pages(), expected.pages()) << c.Name();
      for (int64_t r = 0; r < step.rows; ++r) {  // q only: k and v are left undefined
        const auto at = static_cast<size_t>(r * world.row_width());
        EXPECT_EQ(std::memcmp(&step.qkv[at], &expected_step.qkv[at],
                              static_cast<size_t>(world.out_width()) * 4),
                  0);
      }
    }
  }
}

TEST_P(FloatParity, Attention) {
  for (const AttentionCase& c : AttentionCases()) {
    KvWorld world(c, 1100);
    world.StoreHistory(c.sequences);
    Rig one(1), many(3);
    KvWorld::Step step = world.MakeStep(c.sequences);
    ASSERT_TRUE(world.Append(reference_, one, step).ok());
    Output expected(step.rows, world.out_width(), true, true, 64);
    ASSERT_TRUE(world.Attend(reference_, many, step, expected.view).ok());
    for (const float x : expected.scale) ASSERT_TRUE(std::isfinite(x)) << c.Name();
    for (const int threads : {1, 2, 3, 7}) {
      Rig rig(threads);
      Output got(step.rows, world.out_width(), true, true, 64);
      ASSERT_TRUE(world.Attend(GetParam(), rig, step, got.view).ok());
      EXPECT_TRUE(got == expected) << c.Name() << " threads=" << threads;
      Output codes(step.rows, world.out_width(), false, true, 64);
      ASSERT_TRUE(world.Attend(GetParam(), rig, step, codes.view).ok());
      EXPECT_EQ(codes.scale, expected.scale);
      EXPECT_EQ(codes.row_sum, expected.row_sum);
    }
  }
}

TEST_P(FloatParity, Sample) {
  constexpr int32_t kVocabulary = 1003;
  constexpr int64_t kPadded = 1024;
  std::vector<float> logits = RandomFloats(12 * kPadded, 31, 3.0f);
  for (int64_t r = 0; r < 12; ++r) {
    for (int64_t i = kVocabulary; i < kPadded; ++i)
      logits[static_cast<size_t>(r * kPadded + i)] = r % 2 == 0 ? -INFINITY : 99;
    logits[static_cast<size_t>(r * kPadded + 500)] = logits[static_cast<size_t>(r * kPadded + 7)] =
        9.5f;  // a tie
  }
  const std::vector<int32_t> prompt = {1, 2, 3, 500, 500}, output = {7, 7, 9, 500};
  const std::vector<int32_t> bias_ids = {7, 40}, banned = {3, 500};
  const std::vector<float> bias_values = {-3.0f, 6.0f};
  std::vector<SampleRow> rows(12);
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r] = {.slot = static_cast<int32_t>(11 - r),
               .seed = 77 + (uint64_t{r} << 33),
               .candidate = static_cast<uint32_t>(r),
               .position = 90,
               .logprobs = static_cast<int32_t>(r) - 1};
  }
  rows[0].temperature = 0;
  rows[1].temperature = 0.7f;
  rows[2].top_k = 40;
  rows[3].top_p = 0.9f;
  rows[4].top_k = 17, rows[4].top_p = 0.5f, rows[4].min_p = 0.01f;
  rows[5].min_p = 0.05f;
  rows[6].repetition_penalty = 1.3f, rows[6].prompt_ids = prompt, rows[6].output_ids = output;
  rows[7].presence_penalty = 0.5f, rows[7].frequency_penalty = 0.3f, rows[7].output_ids = output;
  rows[8].bias_ids = bias_ids, rows[8].bias_values = bias_values, rows[8].banned_ids = banned;
  rows[9].temperature = 0, rows[9].banned_ids = banned;
  rows[10].top_p = 0.999f, rows[10].temperature = 30;
  const auto run = [&](const FloatOps& ops, int threads) {
    Rig rig(threads);
    std::vector<int32_t> ids(12, -1);
    std::vector<SampledToken> results;
    const Status status = ops.sample(rig.context, {.logits = {logits.data(), 12, kPadded, kPadded},
                                                   .vocab_size = kVocabulary,
                                                   .rows = rows,
                                                   .sampled_ids = ids.data(),
                                                   .results = &results});
    EXPECT_TRUE(status.ok()) << status.message();
    for (const SampledToken& token : results)
      EXPECT_EQ(ids[static_cast<size_t>(token.slot)], token.id);
    return results;
  };
  for (uint32_t position = 0; position < 40; ++position) {
    for (SampleRow& row : rows) row.position = position;
    const std::vector<SampledToken> expected = run(reference_, 1);
    ASSERT_EQ(expected.size(), 12u);
    for (const int threads : {1, 2, 3}) {
      const std::vector<SampledToken> got = run(GetParam(), threads);
      ASSERT_EQ(got.size(), 12u);
      for (size_t r = 0; r < got.size(); ++r) {
        EXPECT_EQ(got[r].id, expected[r].id) << "row " << r;
        EXPECT_EQ(got[r].logprob, expected[r].logprob) << "row " << r;
        ASSERT_EQ(got[r].top.size(), expected[r].top.size());
        for (size_t i = 0; i < got[r].top.size(); ++i) {
          EXPECT_EQ(got[r].top[i].id, expected[r].top[i].id);
          EXPECT_EQ(got[r].top[i].logprob, expected[r].top[i].logprob);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, FloatParity, ::testing::ValuesIn(FastOps()),
                         [](const auto& ops) { return ops.param.name; });

}  // namespace
}  // namespace qserve::kernels::testing
