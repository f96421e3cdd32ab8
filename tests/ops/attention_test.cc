// What attention promises beyond parity: a row's bits do not depend on who is computed beside it,
// how its prompt was cut, where its pages lie or what lies in unused memory; and the numbers are
// those of softmax attention in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/kv_reference.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::testing {
namespace {

std::vector<FloatOps> AllOps() {
  std::vector<FloatOps> all = FastOps();
  all.push_back(ReferenceOps());
  return all;
}

class Attention : public ::testing::TestWithParam<FloatOps> {
 protected:
  void SetUp() override {
    if (!GetParam().present) GTEST_SKIP() << "this machine has no " << GetParam().name;
  }
  // The output rows of one step.
  std::vector<float> Attend(const KvWorld& world, const KvWorld::Step& step, int threads) const {
    Rig rig(threads);
    std::vector<float> out(static_cast<size_t>(step.rows * world.out_width()));
    const Activation view{.rows = step.rows,
                          .cols = world.out_width(),
                          .f32 = out.data(),
                          .f32_stride = world.out_width()};
    EXPECT_TRUE(world.Attend(GetParam(), rig, step, view).ok());
    return out;
  }
  // All positions [0, length) of sequence `id`, appended and attended in chunks of `budget` rows.
  std::vector<float> InChunks(KvWorld& world, int id, int64_t length, int64_t budget,
                              int threads) const {
    Rig rig(threads);
    std::vector<float> all;
    for (int64_t done = 0; done < length; done += budget) {
      KvWorld::Step step = world.MakeStep({{done, std::min(budget, length - done)}}, {id});
      EXPECT_TRUE(world.Append(GetParam(), rig, step).ok());
      const std::vector<float> out = Attend(world, step, threads);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_P(Attention, BitsDoNotDependOnHowThePromptIsCut) {
  for (const AttentionCase& c :
       {AttentionCase{4, 1, 64, KvFormat::kInt4}, AttentionCase{4, 2, 64, KvFormat::kInt4, 100},
        AttentionCase{2, 2, 32, KvFormat::kF16},
        AttentionCase{3, 1, 96, KvFormat::kInt8, 0, true}}) {
    constexpr int64_t kLength = 300;
    KvWorld whole(c, kLength);
    const std::vector<float> expected = InChunks(whole, 0, kLength, kLength, 1);
    for (const float x : expected) ASSERT_TRUE(std::isfinite(x)) << "unwritten memory was read";
    for (const int64_t budget : {1, 7, 64, 129}) {
      KvWorld world(c, kLength, /*page_seed=*/static_cast<uint64_t>(budget));
      EXPECT_TRUE(SameBits(InChunks(world, 0, kLength, budget, 2), expected))
          << c.Name() << " budget=" << budget;
    }
  }
}

TEST_P(Attention, BitsDoNotDependOnTheCrowd) {
  for (const KvFormat format : {KvFormat::kInt4, KvFormat::kF32}) {
    const AttentionCase c{.heads = 4, .kv_heads = 2, .head_dim = 64, .format = format};
    const std::vector<SequenceShape> shapes = {{700, 1}, {3, 1}, {256, 9}, {0, 40}, {511, 2}};
    KvWorld world(c, 800);
    world.StoreHistory(shapes);
    Rig rig(1);
    KvWorld::Step together = world.MakeStep(shapes);
    ASSERT_TRUE(world.Append(GetParam(), rig, together).ok());
    const std::vector<float> crowd = Attend(world, together, 3);
    for (size_t s = 0; s < shapes.size(); ++s) {
      KvWorld lonely(c, 800, 5);
      lonely.StoreHistory({shapes[s]}, {static_cast<int>(s)});
      KvWorld::Step alone = lonely.MakeStep({shapes[s]}, {static_cast<int>(s)});
      ASSERT_TRUE(lonely.Append(GetParam(), rig, alone).ok());
      for (const int threads : {1, 4}) {  // with 4, the long ones are cut by chunks
        const std::vector<float> out = Attend(lonely, alone, threads);
        const float* expected = crowd.data() + together.spans[s].first_row * world.out_width();
        EXPECT_EQ(std::memcmp(out.data(), expected, out.size() * sizeof(float)), 0)
            << "sequence " << s;
      }
    }
  }
}

// Softmax attention over what is stored, in double.
std::vector<double> Naive(const KvWorld& world, const KvWorld::Step& step, int64_t row,
                          int sequence, int head) {
  using cpu::reference::LoadCode;
  using cpu::reference::LoadParameter;
  const AttentionCase& c = world.shape();
  const cpu::KvPageLayout layout(c.format, c.head_dim);
  const SequenceSpan& span = step.spans[static_cast<size_t>(sequence)];
  const int64_t position = span.first_position + row;
  const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
  const float* q = step.qkv.data() + (span.first_row + row) * world.row_width() + head * c.head_dim;
  const auto page = [&](int64_t t) {
    return cpu::KvHead(world.layer(), layout, span.block_table[static_cast<size_t>(t / 64)],
                       head / (c.heads / c.kv_heads));
  };
  const auto value = [&](int64_t t, const uint8_t* stored_row, int length, int i, int array) {
    const double code = static_cast<double>(LoadCode(c.format, stored_row, length, i));
    if (!cpu::KvQuantized(c.format)) return code;
    const int slot = static_cast<int>(t % 64);
    return code * static_cast<double>(LoadParameter(page(t), layout, array, slot)) +
           static_cast<double>(LoadParameter(page(t), layout, array + 1, slot));
  };
  std::vector<double> scores;
  double largest = -1e300, sum = 0;
  for (int64_t t = first; t <= position; ++t) {
    double dot = 0;
    const int slot = static_cast<int>(t % 64);
    for (int d = 0; d < c.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * value(t, page(t) + layout.KeyRow(d), 64, slot, 0);
    }
    scores.push_back(dot * static_cast<double>(world.scale()));
    largest = std::max(largest, scores.back());
  }
  std::vector<double> out(static_cast<size_t>(c.head_dim));
  for (int64_t t = first; t <= position; ++t) {
    const double p = std::exp(scores[static_cast<size_t>(t - first)] - largest);
    sum += p;
    for (int d = 0; d < c.head_dim; ++d) {
      out[static_cast<size_t>(d)] +=
          p * value(t, page(t) + layout.ValueRow(static_cast<int>(t % 64)), c.head_dim, d, 2);
    }
  }
  for (double& x : out) x /= sum;
  return out;
}

TEST_P(Attention, IsSoftmaxAttention) {
  for (const AttentionCase& c : AttentionCases()) {
    KvWorld world(c, 1100);
    world.StoreHistory(c.sequences);
    Rig rig(1);
    KvWorld::Step step = world.MakeStep(c.sequences);
    ASSERT_TRUE(world.Append(GetParam(), rig, step).ok());
    const std::vector<float> out = Attend(world, step, 2);
    for (size_t s = 0; s < c.sequences.size(); ++s) {
      const int64_t row = c.sequences[s].row_count - 1;
      const int head = static_cast<int>(s) % c.heads;
      const std::vector<double> expected = Naive(world, step, row, static_cast<int>(s), head);
      const float* got =
          out.data() + (step.spans[s].first_row + row) * world.out_width() + head * c.head_dim;
      for (int d = 0; d < c.head_dim; ++d) {
        ASSERT_NEAR(static_cast<double>(got[d]), expected[static_cast<size_t>(d)], 4e-6)
            << c.Name() << " sequence " << s;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Attention, ::testing::ValuesIn(AllOps()),
                         [](const auto& ops) { return ops.param.name; });

// What is stored is the vector that was given, to the format's precision.
TEST(KvPage, HoldsKeysAndValues) {
  for (const KvFormat format : {KvFormat::kInt4, KvFormat::kInt8, KvFormat::kF16, KvFormat::kF32}) {
    const AttentionCase c{.heads = 1, .kv_heads = 1, .head_dim = 64, .format = format};
    KvWorld world(c, 64);
    Rig rig(1);
    KvWorld::Step step = world.MakeStep({{0, 64}});
    const std::vector<float> given = step.qkv;
    ASSERT_TRUE(world.Append(ReferenceOps(), rig, step).ok());
    const cpu::KvPageLayout layout(format, 64);
    const uint8_t* head = cpu::KvHead(world.layer(), layout, world.block_table(0)[0], 0);
    const double tolerance = format == KvFormat::kInt4   ? 0.25
                             : format == KvFormat::kInt8 ? 0.016
                             : format == KvFormat::kF16  ? 2e-3
                                                         : 0;
    for (int t = 0; t < 64; ++t) {
      for (int d = 0; d < 64; ++d) {
        double v =
            static_cast<double>(cpu::reference::LoadCode(format, head + layout.ValueRow(t), 64, d));
        if (cpu::KvQuantized(format)) {
          v = v * static_cast<double>(cpu::reference::LoadParameter(head, layout, 2, t)) +
              static_cast<double>(cpu::reference::LoadParameter(head, layout, 3, t));
        }
        EXPECT_NEAR(v, static_cast<double>(given[static_cast<size_t>(t * 192 + 128 + d)]),
                    tolerance)
            << FormatName(format);
      }
    }
  }
}

TEST(KvPage, BytesAreTheFormulaOfTheDesign) {
  for (const int kv_heads : {1, 2, 8}) {
    for (const int dim : {64, 96, 128, 256}) {
      EXPECT_EQ(KvPageBytes({KvFormat::kInt4, kv_heads, dim}), 2 * kv_heads * 64 * (dim / 2 + 4));
      EXPECT_EQ(KvPageBytes({KvFormat::kInt8, kv_heads, dim}), 2 * kv_heads * 64 * (dim + 4));
      EXPECT_EQ(KvPageBytes({KvFormat::kF16, kv_heads, dim}), 2 * kv_heads * 64 * dim * 2);
      EXPECT_EQ(KvPageBytes({KvFormat::kF32, kv_heads, dim}), 2 * kv_heads * 64 * dim * 4);
      for (const KvFormat format :
           {KvFormat::kInt4, KvFormat::kInt8, KvFormat::kF16, KvFormat::kF32}) {
        const cpu::KvPageLayout layout(format, dim);
        EXPECT_EQ(layout.head_bytes * kv_heads, KvPageBytes({format, kv_heads, dim}));
      }
    }
  }
}

}  // namespace
}  // namespace qserve::kernels::testing
