// Attention on the emulated GPU: the CPU's numbers within the tolerance that fp16 queries and
// weights leave, and one row's bits whatever is computed beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "tests/unit/kernels/cuda/attention_rig.h"

namespace qserve::kernels::cuda::testing {
namespace {

using ::qserve::kernels::testing::ReferenceOps;
using ::qserve::kernels::testing::Rig;

constexpr auto k4 = KvFormat::kInt4;
constexpr auto k8 = KvFormat::kInt8;
constexpr auto k16 = KvFormat::kF16;

// A step whose keys and values are stored, in both layouts, and whose q is rotated.
struct Prepared {
  Prepared(const AttentionCase& shape, const std::vector<SequenceShape>& sequences,
           const std::vector<int>& ids = {}, FloatType type = FloatType::kF16,
           uint64_t page_seed = 2)
      : world(shape, 1100, page_seed), gpu(world) {
    world.StoreHistory(sequences, ids);
    step = world.MakeStep(sequences, ids);
    Rig rig(1);
    EXPECT_TRUE(world.Append(ReferenceOps(), rig, step).ok());
    gpu.CopyPages();
    RoundRows(type, &step);
    rows = std::make_unique<HalfRows>(step.qkv, step.rows, type);
  }
  std::vector<float> Gpu(const StepOptions& options = {}) {
    Output out(std::max(options.rows, step.rows), world.out_width(), true, false);
    gpu.Attend(step, *rows, out.view, options);
    return Dense(out);
  }
  std::vector<float> Cpu() {
    Output out(step.rows, world.out_width(), true, false);
    Rig rig(1);
    EXPECT_TRUE(world.Attend(ReferenceOps(), rig, step, out.view).ok());
    return Dense(out);
  }
  static std::vector<float> Dense(const Output& out) {
    std::vector<float> values;
    for (int64_t r = 0; r < out.view.rows; ++r) {
      const float* row = out.f32.data() + r * out.view.f32_stride;
      values.insert(values.end(), row, row + out.view.cols);
    }
    return values;
  }

  KvWorld world;
  GpuWorld gpu;
  KvWorld::Step step;
  std::unique_ptr<HalfRows> rows;
};

void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected,
                const std::string& name) {
  ASSERT_EQ(got.size(), expected.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << name << " at " << i;
    worst =
        std::max(worst, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  }
  // Values are around 1. Rounding q to fp16 moves scores by about 2^-12 of their size, and rounding
  // weights moves outputs by 2^-11 of theirs at most.
  EXPECT_LT(worst, 1.5e-3) << name;
}

TEST(GpuAttention, AgreesWithTheCpuWithinFp16) {
  const std::vector<AttentionCase> cases = {
      {4, 1, 128, k4, 0, false, {{0, 1}, {5, 3}, {63, 2}, {300, 1}}},
      {4, 2, 64, k4, 0, false, {{255, 1}, {256, 1}, {511, 2}, {0, 40}}},
      {2, 2, 96, k4, 0, false, {{260, 17}, {0, 1}}},
      {7, 1, 128, k4, 0, false, {{700, 1}, {127, 5}}},
      {5, 1, 64, k4, 0, false, {{520, 9}}},
      {8, 1, 64, k4, 0, false, {{300, 1}, {63, 6}}},
      {2, 1, 256, k4, 0, false, {{250, 9}, {64, 1}}},
      {16, 1, 64, k4, 0, false, {{257, 1}, {64, 3}}},
      {16, 1, 96, k4, 0, false, {{65, 1}}},
      {40, 1, 64, k4, 0, false, {{77, 2}}},
      {4, 2, 128, k4, 17, false, {{0, 20}, {300, 20}, {515, 1}}},
      {2, 1, 64, k4, 1, false, {{0, 3}, {257, 2}}},
      {4, 4, 64, k4, 300, false, {{600, 33}, {290, 1}}},
      {6, 2, 96, k8, 0, false, {{70, 25}, {511, 1}}},
      {4, 1, 64, k8, 64, false, {{320, 10}, {60, 9}}},
      {2, 1, 128, k8, 0, false, {{300, 2}}},
      {2, 1, 256, k8, 0, false, {{300, 2}}},
      {4, 2, 128, k16, 0, false, {{0, 20}, {258, 4}}},
      {3, 1, 96, k16, 100, false, {{400, 12}, {7, 1}}},
      {2, 1, 256, k16, 0, false, {{130, 3}}},
      {2, 1, 64, k16, 0, false, {{66, 1}}},
  };
  for (const AttentionCase& c : cases) {
    Prepared prepared(c, c.sequences);
    ExpectNear(prepared.Gpu(), prepared.Cpu(), c.Name());
  }
}

TEST(GpuAttention, TakesBf16AndWritesInt8Rows) {
  const std::vector<SequenceShape> sequences = {{300, 1}, {9, 2}};
  Prepared prepared({10, 2, 128, k4}, sequences, {}, FloatType::kBf16);  // two blocks to a row
  ExpectNear(prepared.Gpu(), prepared.Cpu(), "bf16");

  constexpr int64_t kBucket = 5;
  Output out(kBucket, prepared.world.out_width(), true, true, 32);
  prepared.gpu.Attend(prepared.step, *prepared.rows, out.view, {.rows = kBucket});
  Output expected(kBucket, prepared.world.out_width(), true, true, 32);
  expected.f32 = out.f32;
  for (int64_t r = 0; r < kBucket; ++r) {
    // int8 rows are those of the floats that the same launch wrote.
    int32_t sum = 0;
    for (int64_t c = 0; c < out.view.cols; ++c) sum += out.view.q[r * out.view.q_stride + 32 + c];
    EXPECT_EQ(out.row_sum[static_cast<size_t>(r)], sum);
    const float* row = out.f32.data() + r * out.view.f32_stride;
    const float largest = std::abs(*std::max_element(
        row, row + out.view.cols, [](float a, float b) { return std::abs(a) < std::abs(b); }));
    EXPECT_EQ(out.scale[static_cast<size_t>(r)], largest / 127.0f);
    EXPECT_EQ(largest == 0.0f, r >= 3) << "rows of padding are zeros";
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Rows [row, row + count) of a step's output.
std::vector<float> Rows(const std::vector<float>& out, int64_t width, int64_t row, int64_t count) {
  return {out.begin() + row * width, out.begin() + (row + count) * width};
}

// The same rows prefilled at once, in pieces, one by one, by blocks of every width, whole and split
// into chunks.
TEST(GpuAttention, BitsDoNotDependOnHowThePromptIsCut) {
  for (const AttentionCase& c :
       {AttentionCase{4, 1, 64, k4}, AttentionCase{5, 1, 64, k4, 70}, AttentionCase{16, 1, 64, k4},
        AttentionCase{2, 1, 64, k16}, AttentionCase{1, 1, 96, k8}}) {
    constexpr int64_t kFirst = 250, kRows = 19;  // over the border of a chunk
    Prepared whole(c, {{kFirst, kRows}});
    const std::vector<float> expected = whole.Gpu({.device = {.multiprocessors = 1}});
    EXPECT_TRUE(
        SameBits(whole.Gpu({.device = {.multiprocessors = 100}, .order_seed = 3}), expected))
        << c.Name() << ": split into chunks";
    for (const auto& [first, count] :
         {std::pair<int64_t, int64_t>{0, 7}, {7, 2}, {9, 1}, {18, 1}}) {
      // What follows is not stored yet, and pages lie elsewhere.
      Prepared piece(c, {{kFirst + first, count}}, {}, FloatType::kF16, 5);
      EXPECT_TRUE(SameBits(piece.Gpu({.device = {.multiprocessors = first == 9 ? 50 : 1},
                                      .order_seed = static_cast<uint64_t>(first)}),
                           Rows(expected, whole.world.out_width(), first, count)))
          << c.Name() << " rows " << first << "+" << count;
    }
  }
}

TEST(GpuAttention, BitsDoNotDependOnTheCrowd) {
  const AttentionCase c{.heads = 4, .kv_heads = 2, .head_dim = 64, .format = k4};
  const std::vector<SequenceShape> shapes = {{700, 1}, {3, 1}, {256, 9}, {0, 20}, {511, 2}};
  Prepared together(c, shapes);
  for (const uint64_t seed : {1u, 2u}) {
    const std::vector<float> crowd = together.Gpu(
        {.device = {.multiprocessors = seed == 1 ? 1 : 40}, .order_seed = seed, .rows = 40});
    for (size_t s = 0; s < shapes.size(); ++s) {
      Prepared alone(c, {shapes[s]}, {static_cast<int>(s)}, FloatType::kF16, 7);
      EXPECT_TRUE(SameBits(alone.Gpu({.blocks = 1}),
                           Rows(crowd, together.world.out_width(), together.step.spans[s].first_row,
                                shapes[s].row_count)))
          << "sequence " << s;
    }
  }
}

// Scores far apart: weights that underflow, and chunks that weigh nothing beside others.
TEST(GpuAttention, BearsLargeScores) {
  Prepared prepared({2, 1, 64, k4}, {{600, 2}});
  for (float& x : prepared.step.qkv) x *= 60;
  RoundRows(FloatType::kF16, &prepared.step);
  prepared.rows =
      std::make_unique<HalfRows>(prepared.step.qkv, prepared.step.rows, FloatType::kF16);
  const std::vector<float> got = prepared.Gpu(), expected = prepared.Cpu();
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(got[i]), static_cast<double>(expected[i]), 0.03) << i;
  }
}

// One block merges a row of a large bucket, several one of a small bucket.
TEST(GpuAttention, MergesWithTheSameBitsInEveryBucket) {
  Prepared prepared({20, 4, 64, k4}, {{300, 1}, {2, 1}});
  const std::vector<float> small = prepared.Gpu(), large = prepared.Gpu({.rows = 256});
  EXPECT_TRUE(SameBits(Rows(large, prepared.world.out_width(), 0, 2), small));
}

TEST(GpuAttention, RefusesWhatNoKernelHas) {
  const AttentionModel good = {.heads = 4, .kv = {k4, 2, 128}};
  EXPECT_TRUE(CheckAttentionModel(good).ok());
  AttentionModel model = good;
  model.kv.head_dim = 80;
  EXPECT_EQ(CheckAttentionModel(model).code(), StatusCode::kUnsupported);
  model = good;
  model.kv.format = KvFormat::kF32;
  EXPECT_EQ(CheckAttentionModel(model).code(), StatusCode::kUnsupported);
  emulator::Stream stream;
  EXPECT_EQ(LaunchAttention(&stream, {.heads = 4, .kv = {k4, 2, 80}}), kInvalidAttention);
}

}  // namespace
}  // namespace qserve::kernels::cuda::testing
