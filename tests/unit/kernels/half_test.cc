// Half-precision and bfloat16 conversions, exhaustively where 16 bits go in.
#include "kernels/quant/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace qserve::kernels {
namespace {

static_assert(HalfToFloat(0x3c00) == 1.0f && FloatToHalf(-2.0f) == 0xc000,
              "usable at compile time");

TEST(Half, EveryValueReadsAsItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double mantissa = bits & 1023;
    double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31)
      expected = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    if (bits & 0x8000) expected = -expected;
    const float got = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), expected) << bits;
      ASSERT_EQ(std::signbit(got), (bits & 0x8000) != 0) << bits;
    }
  }
}

TEST(Half, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bool nan = (bits & 0x7fff) > 0x7c00;
    const uint32_t expected = nan ? bits | 0x200 : bits;  // a signalling NaN becomes quiet
    ASSERT_EQ(FloatToHalf(HalfToFloat(static_cast<uint16_t>(bits))), expected);
  }
}

// Between two neighbours: the nearer one, the even one from the middle, and one unit in the last
// place of fp32 decides.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = HalfToFloat(static_cast<uint16_t>(bits));
    const float high = HalfToFloat(static_cast<uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(FloatToHalf(middle), even) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafterf(middle, 0)), bits) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafterf(middle, 1e9f)), bits + 1) << bits;
    ASSERT_EQ(FloatToHalf(-middle), even | 0x8000) << bits;
  }
}

TEST(Half, OverflowsToInfinityAndUnderflowsToZero) {
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0x0000);  // a tie with zero, which is even
  EXPECT_EQ(FloatToHalf(std::nextafterf(0x1p-25f, 1)), 0x0001);
  EXPECT_EQ(FloatToHalf(-1e-40f), 0x8000);
}

TEST(Bf16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const float low = Bf16ToFloat(static_cast<uint16_t>(bits));
    ASSERT_EQ(FloatToBf16(low), bits);
    const float middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(FloatToBf16(middle), even);
    ASSERT_EQ(FloatToBf16(std::nextafterf(middle, 0)), bits);
    ASSERT_EQ(FloatToBf16(std::nextafterf(middle, std::numeric_limits<float>::infinity())),
              bits + 1);
  }
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace qserve::kernels
