// Round-to-nearest: the bound of 119, the error of half a step, and the rows for which a formula
// could divide by zero.
#include "kernels/quant/rtn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "kernels/quant/half.h"

namespace qserve::kernels {
namespace {

using Quantizer = std::function<StatusOr<LinearWeight>(const float*, int64_t, int64_t)>;

std::vector<float> Row(const LinearWeight& w, int64_t row) {
  std::vector<float> values(static_cast<size_t>(w.k));
  DequantizeRow(w, row, values.data());
  return values;
}

// Every pair of integer group ends within the protected range, in a row whose scale is exactly 1:
// no code leaves int8.
TEST(RtnGroup128, NoGroupWithinTheProtectedRangeLeavesInt8) {
  std::vector<float> row(2 * kWeightGroup);
  int largest_scale = 0;
  for (int high = -119; high <= 119; ++high) {
    for (int low = -119; low <= high; ++low) {
      for (size_t i = 0; i < kWeightGroup; ++i) {
        row[i] = i == 0 ? 119.0f : 0.0f;  // the first group fixes the row's scale at 1
        row[kWeightGroup + i] = static_cast<float>(low + static_cast<int>(i) % (high - low + 1));
      }
      row[kWeightGroup + 1] = static_cast<float>(high);
      const StatusOr<LinearWeight> w = RtnGroup128(row.data(), 1, 2 * kWeightGroup);
      ASSERT_TRUE(w.ok());
      ASSERT_EQ(w->scale[0], 1.0f);
      ASSERT_TRUE(Validate(*w).ok())
          << Validate(*w).message() << " low " << low << " high " << high;
      largest_scale = std::max<int>(largest_scale, w->group_scale[1]);
    }
  }
  EXPECT_EQ(largest_scale, 16);
}

// Random rows of any size: the error is at most half a step of the group, plus what the zero's own
// rounding may clip.
TEST(RtnGroup128, IsWithinAStep) {
  uint32_t state = 99;
  for (const float magnitude : {1e-3f, 0.05f, 3.0f, 1000.0f}) {
    std::vector<float> values(4 * 300);
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = magnitude * (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
    const StatusOr<LinearWeight> w = RtnGroup128(values.data(), 4, 300);
    ASSERT_TRUE(w.ok());
    ASSERT_TRUE(Validate(*w).ok());
    for (int64_t row = 0; row < 4; ++row) {
      const std::vector<float> got = Row(*w, row);
      for (int64_t k = 0; k < 300; ++k) {
        const float step = w->scale[static_cast<size_t>(row)] *
                           w->group_scale[static_cast<size_t>(row * 3 + k / 128)];
        ASSERT_NEAR(got[static_cast<size_t>(k)], values[static_cast<size_t>(row * 300 + k)],
                    1.01f * step);
      }
    }
  }
}

TEST(RtnPerChannel, IsWithinAStepAndKeepsFp16Values) {
  std::vector<float> values(2 * 64);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = 0.3f * std::sin(static_cast<float>(i)) + 0.1f;
  const StatusOr<LinearWeight> w = RtnPerChannel(values.data(), 2, 64);
  ASSERT_TRUE(w.ok());
  for (int64_t row = 0; row < 2; ++row) {
    const float step = w->scale[static_cast<size_t>(row)];
    EXPECT_EQ(step, RoundToHalf(step));
    EXPECT_EQ(w->scaled_zero[static_cast<size_t>(row)],
              RoundToHalf(w->scaled_zero[static_cast<size_t>(row)]));
    const std::vector<float> got = Row(*w, row);
    for (size_t k = 0; k < 64; ++k)
      ASSERT_NEAR(got[k], values[static_cast<size_t>(row) * 64 + k], 1.01f * step);
  }
}

TEST(RtnInt8PerRow, IsWithinHalfAStep) {
  std::vector<float> values(3 * 50);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i * i));
  const StatusOr<LinearWeight> w = RtnInt8PerRow(values.data(), 3, 50);
  ASSERT_TRUE(w.ok());
  for (int64_t row = 0; row < 3; ++row) {
    const std::vector<float> got = Row(*w, row);
    for (size_t k = 0; k < 50; ++k) {
      ASSERT_NEAR(got[k], values[static_cast<size_t>(row) * 50 + k],
                  0.5001f * w->scale[static_cast<size_t>(row)]);
    }
  }
}

const std::vector<std::pair<const char*, Quantizer>>& All() {
  static const std::vector<std::pair<const char*, Quantizer>> all = {
      {"g128", RtnGroup128}, {"gchn", RtnPerChannel}, {"int8", RtnInt8PerRow}};
  return all;
}

TEST(Rtn, ZeroConstantAndTinyRowsComeBack) {
  for (const auto& [name, quantize] : All()) {
    for (const float value : {0.0f, -0.0f, 0.37f, -0.37f, 1e-30f, -1e-42f, 100.0f}) {
      const std::vector<float> values(2 * 160, value);
      const StatusOr<LinearWeight> w = quantize(values.data(), 2, 160);
      ASSERT_TRUE(w.ok()) << name << " " << value;
      ASSERT_TRUE(Validate(*w).ok()) << name << " " << value << ": " << Validate(*w).message();
      for (const float got : Row(*w, 1))
        ASSERT_NEAR(got, value, 0.04f * std::abs(value) + 1e-7f) << name << " " << value;
    }
  }
}

TEST(Rtn, RefusesWhatIsNotFiniteOrTooLarge) {
  for (const auto& [name, quantize] : All()) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(4 * 32, 0.5f);
      values[70] = bad;
      const StatusOr<LinearWeight> w = quantize(values.data(), 4, 32);
      ASSERT_FALSE(w.ok()) << name;
      EXPECT_NE(w.status().message().find("(2, 6)"), std::string::npos) << w.status().message();
    }
    EXPECT_FALSE(quantize(nullptr, 0, 32).ok());
    EXPECT_FALSE(quantize(nullptr, 1, int64_t{1} << 40).ok());
  }
  const std::vector<float> huge = {1e8f, -1e8f};
  EXPECT_FALSE(RtnGroup128(huge.data(), 1, 2).ok());
  EXPECT_FALSE(RtnPerChannel(huge.data(), 1, 2).ok());
  EXPECT_TRUE(RtnInt8PerRow(huge.data(), 1, 2).ok());
}

// Rows are independent: a tensor-parallel rank that quantizes its rows gets the codes of the whole.
TEST(Rtn, RowsDoNotDependOnEachOther) {
  std::vector<float> values(6 * 96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::cos(static_cast<float>(i) * 1.7f);
  for (const auto& [name, quantize] : All()) {
    const LinearWeight whole = *quantize(values.data(), 6, 96);
    const LinearWeight part = *quantize(values.data() + 4 * 96, 2, 96);
    EXPECT_EQ(Row(whole, 5), Row(part, 1)) << name;
  }
}

}  // namespace
}  // namespace qserve::kernels
