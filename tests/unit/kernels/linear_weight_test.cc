// Validation, concatenation and slicing of canonical weights.
#include "kernels/quant/linear_weight.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/quant/rtn.h"

namespace qserve::kernels {
namespace {

// Values in [-1, 1] from a small generator, with an outlier column so that groups differ.
std::vector<float> Values(int64_t n, int64_t k, uint32_t seed) {
  std::vector<float> values(static_cast<size_t>(n * k));
  uint32_t state = seed;
  for (size_t i = 0; i < values.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f) *
                (i % static_cast<size_t>(k) < 40 ? 1.0f : 0.3f);
  }
  return values;
}

LinearWeight Group(int64_t n, int64_t k, uint32_t seed) {
  return *RtnGroup128(Values(n, k, seed).data(), n, k);
}

std::vector<float> Row(const LinearWeight& w, int64_t row) {
  std::vector<float> values(static_cast<size_t>(w.k));
  DequantizeRow(w, row, values.data());
  return values;
}

TEST(LinearWeight, ValidateAcceptsWhatQuantizersMakeAndRefusesDamage) {
  const LinearWeight good = Group(4, 300, 1);
  ASSERT_TRUE(Validate(good).ok()) << Validate(good).message();
  const auto refused = [&](auto damage) {
    LinearWeight bad = good;
    damage(bad);
    return !Validate(bad).ok();
  };
  EXPECT_TRUE(refused([](LinearWeight& w) { w.codes.pop_back(); }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.codes[5] = 16; }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.n = -4; }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.k = int64_t{1} << 62; }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.lead = 128; }));
  EXPECT_TRUE(
      refused([](LinearWeight& w) { w.lead = 90; }));  // a fourth group, for which nothing is there
  EXPECT_TRUE(refused([](LinearWeight& w) { w.group_scale[0] = 0; }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.group_scale[0] = 128; }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.group_offset[2] = 128; }));
  EXPECT_TRUE(
      refused([](LinearWeight& w) { w.scale[1] = std::numeric_limits<float>::infinity(); }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.bias.assign(3, 0.0f); }));
  EXPECT_TRUE(
      refused([](LinearWeight& w) { w.bias.assign(4, std::numeric_limits<float>::quiet_NaN()); }));
  EXPECT_TRUE(refused([](LinearWeight& w) { w.floats.push_back(0); }));

  LinearWeight w8 = *RtnInt8PerRow(Values(2, 8, 3).data(), 2, 8);
  EXPECT_TRUE(Validate(w8).ok());
  w8.codes[3] = 0x80;  // -128, for which no kernel has room
  EXPECT_FALSE(Validate(w8).ok());
}

TEST(LinearWeight, ConcatenatesRowsAndFillsAbsentBiases) {
  LinearWeight q = Group(3, 256, 1);
  const LinearWeight k = Group(2, 256, 2);
  q.bias = {1, 2, 3};
  const StatusOr<LinearWeight> both = ConcatenateRows({&q, &k});
  ASSERT_TRUE(both.ok());
  ASSERT_TRUE(Validate(*both).ok());
  EXPECT_EQ(both->n, 5);
  EXPECT_EQ(both->bias, (std::vector<float>{1, 2, 3, 0, 0}));
  EXPECT_EQ(Row(*both, 2), Row(q, 2));
  EXPECT_EQ(Row(*both, 4), Row(k, 1));
  const LinearWeight reversed = *ConcatenateRows({&k, &q});
  EXPECT_EQ(reversed.bias, (std::vector<float>{0, 0, 1, 2, 3}));
}

TEST(LinearWeight, RefusesToConcatenateWhatDoesNotFit) {
  const LinearWeight group = Group(3, 256, 1);
  const LinearWeight narrower = Group(3, 128, 1);
  const LinearWeight channel = *RtnPerChannel(Values(3, 256, 1).data(), 3, 256);
  LinearWeight damaged = group;
  damaged.scale.pop_back();
  EXPECT_FALSE(ConcatenateRows({}).ok());
  EXPECT_FALSE(ConcatenateRows({&group, &narrower}).ok());
  EXPECT_FALSE(ConcatenateRows({&group, &channel}).ok());
  EXPECT_FALSE(ConcatenateRows({&group, &damaged}).ok());
}

TEST(LinearWeight, ColumnSlicesAreTheWholeCutUp) {
  for (const bool grouped : {true, false}) {
    LinearWeight whole =
        grouped ? Group(5, 320, 9) : *RtnPerChannel(Values(5, 320, 9).data(), 5, 320);
    whole.bias.assign(5, 1.5f);
    for (int64_t begin = 0; begin < 320; begin += 32) {
      for (int64_t end = begin + 32; end <= 320; end += 32) {
        const LinearWeight slice = SliceColumns(whole, begin, end);
        ASSERT_TRUE(Validate(slice).ok()) << Validate(slice).message();
        ASSERT_EQ(slice.lead, begin % 128);
        ASSERT_EQ(slice.bias.empty(), begin != 0);
        for (int64_t row = 0; row < 5; ++row) {
          const std::vector<float> all = Row(whole, row);
          ASSERT_EQ(Row(slice, row), std::vector<float>(all.begin() + begin, all.begin() + end));
        }
      }
    }
  }
}

}  // namespace
}  // namespace qserve::kernels
