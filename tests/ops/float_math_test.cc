// The elementary functions, KV rounding, rotary tables, norm and SiLU against double precision: the
// errors that their headers state.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/math.h"
#include "kernels/quant/half.h"
#include "kernels/quant/kv_quant.h"
#include "kernels/quant/portable_math.h"
#include "kernels/quant/rope_table.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::testing {
namespace {

double Ulps(float got, double expected) {
  const float near = static_cast<float>(expected);
  const double ulp = static_cast<double>(std::nextafter(std::abs(near), INFINITY)) -
                     std::abs(static_cast<double>(near));
  return std::abs(static_cast<double>(got) - expected) / ulp;
}

TEST(FloatMath, ExpOverItsRange) {
  double worst = 0;
  float before = 0;
  for (float x = cpu::kExpMin; x <= cpu::kExpMax; x += 0.00037f) {
    const float y = cpu::Exp(x);
    worst = std::max(worst, Ulps(y, std::exp(static_cast<double>(x))));
    EXPECT_GE(y, before) << x;
    before = y;
  }
  EXPECT_LT(worst, 1.1);
  EXPECT_EQ(cpu::Exp(0.0f), 1.0f);
  EXPECT_EQ(cpu::Exp(-0.0f), 1.0f);
  EXPECT_EQ(cpu::Exp(-INFINITY), 0.0f);
  EXPECT_EQ(cpu::Exp(-88.0f), 0.0f);
  EXPECT_EQ(cpu::Exp(1000.0f), cpu::Exp(cpu::kExpMax));
  EXPECT_TRUE(std::isnan(cpu::Exp(NAN)));
}

TEST(FloatMath, LogOverItsRange) {
  double worst = 0, worst_near_one = 0;
  for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 997) {
    const float x = std::bit_cast<float>(bits);
    const double expected = std::log(static_cast<double>(x));
    const float y = cpu::Log(x);
    if (std::abs(expected) > 0.1) worst = std::max(worst, Ulps(y, expected));
    worst_near_one = std::max(worst_near_one, std::abs(static_cast<double>(y) - expected) /
                                                  std::max(1.0, std::abs(expected)));
  }
  EXPECT_LT(worst, 1.1);
  EXPECT_LT(worst_near_one, 1.2e-7);
  EXPECT_EQ(cpu::Log(1.0f), 0.0f);
}

TEST(KvQuant, RoundTripStaysWithinHalfAStep) {
  for (const int levels : {15, 255}) {
    const std::vector<float> x = RandomFloats(128, 5, 2.0f);
    uint8_t codes[128];
    const KvParameters p = QuantizeKv(x.data(), 128, levels, codes);
    EXPECT_EQ(HalfToFloat(p.scale_half), p.scale);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_LE(codes[i], levels);
      const float back = static_cast<float>(codes[i]) * p.scale + p.minimum;
      // Half a step, and what rounding minimum and scale to fp16 moves the ends of the range by.
      EXPECT_NEAR(back, x[i],
                  p.scale * 0.5f + std::abs(p.minimum) * 0x1p-11f +
                      p.scale * static_cast<float>(levels) * 0x1p-10f);
    }
  }
}

TEST(KvQuant, EdgesAreFiniteAndClamped) {
  uint8_t codes[64];
  std::vector<float> equal(64, 3.25f);
  KvParameters p = QuantizeKv(equal.data(), 64, 15, codes);
  EXPECT_EQ(p.scale, 0.0f);
  EXPECT_EQ(p.minimum, 3.25f);
  for (const uint8_t code : codes) EXPECT_EQ(code, 0);
  // A large offset: fp16 cannot hold the minimum well, and codes would leave 0..15 without the
  // clamp.
  std::vector<float> offset(64);
  for (size_t i = 0; i < 64; ++i) offset[i] = 1000.3f + 0.01f * static_cast<float>(i);
  p = QuantizeKv(offset.data(), 64, 15, codes);
  for (const uint8_t code : codes) EXPECT_LE(code, 15);
  std::vector<float> huge = {-3e38f, 3e38f, 0, 1};
  p = QuantizeKv(huge.data(), 4, 15, codes);
  EXPECT_EQ(p.minimum, -65504.0f);
  EXPECT_EQ(p.scale, 65504.0f);
  EXPECT_EQ(codes[0], 0);
  EXPECT_EQ(codes[1], 15);
  std::vector<float> zero(64, -0.0f);
  EXPECT_EQ(QuantizeKv(zero.data(), 64, 15, codes).minimum_half, 0);
}

TEST(KvQuant, SimulationIsWhatIsReadBack) {
  std::vector<float> x = RandomFloats(96, 8);
  const std::vector<float> original = x;
  uint8_t codes[96];
  const KvParameters p = QuantizeKv(x.data(), 96, 15, codes);
  SimulateKv(KvFormat::kInt4, x.data(), 96);
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(x[i], static_cast<float>(codes[i]) * p.scale + p.minimum);
  x = original;
  SimulateKv(KvFormat::kF32, x.data(), 96);
  EXPECT_EQ(x, original);
}

TEST(RopeTable, EqualsTheLibraryInDouble) {
  for (double angle = 0.001; angle < 1.6e7; angle *= 1.0007) {
    const SinCos turn = PortableSinCos(angle);
    ASSERT_NEAR(turn.sin, std::sin(angle), 4e-16) << angle;
    ASSERT_NEAR(turn.cos, std::cos(angle), 4e-16) << angle;
  }
  for (double x = -40; x < 40; x += 0.0137) ASSERT_NEAR(PortableExp(x) / std::exp(x), 1, 1e-15);
  for (double x = 1e-300; x < 1e300; x *= 1.37)
    ASSERT_NEAR(PortableLog(x), std::log(x), 4e-16 * std::abs(std::log(x)) + 1e-16);
  const RopeSpec spec{.head_dim = 128, .theta = 500000};
  const std::vector<float> table = *BuildRopeTable(spec, 5000);
  for (size_t p = 0; p < 5000; p += 77) {
    for (size_t i = 0; i < 64; ++i) {
      const float f = static_cast<float>(std::pow(500000.0, -2.0 * static_cast<double>(i) / 128));
      const double angle = static_cast<double>(f) * static_cast<double>(p);
      EXPECT_EQ(table[p * 128 + i], static_cast<float>(std::cos(angle)));
      EXPECT_EQ(table[p * 128 + 64 + i], static_cast<float>(std::sin(angle)));
    }
  }
}

// Frequencies of transformers' modeling_rope_utils.py for the published configurations, computed
// independently in double.
TEST(RopeTable, Llama3BlendsByWavelength) {
  const RopeSpec spec{.type = RopeType::kLlama3,
                      .head_dim = 128,
                      .theta = 500000,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_max_position_embeddings = 8192};
  const std::vector<float> f = *RopeFrequencies(spec);
  EXPECT_EQ(f[0], 1.0f);
  const double last = std::pow(500000.0, -126.0 / 128);
  EXPECT_FLOAT_EQ(f[63], static_cast<float>(last / 8));
  for (size_t i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -2.0 * static_cast<double>(i) / 128);
    const double wavelength = 2 * M_PI / plain;
    double expected = plain;
    if (wavelength > 8192) {
      expected = plain / 8;
    } else if (wavelength > 2048) {
      const double smooth = (8192 / wavelength - 1) / 3;
      expected = (1 - smooth) * plain / 8 + smooth * plain;
    }
    EXPECT_FLOAT_EQ(f[i], static_cast<float>(expected)) << i;
  }
}

TEST(RopeTable, YarnBlendsByChannelAndScales) {
  RopeSpec spec{.type = RopeType::kYarn,
                .head_dim = 128,
                .theta = 1000000,
                .factor = 4,
                .original_max_position_embeddings = 32768};
  const std::vector<float> f = *RopeFrequencies(spec);
  const auto channel = [](double rotations) {
    return 128 * std::log(32768 / (rotations * 2 * M_PI)) / (2 * std::log(1e6));
  };
  const double low = std::floor(channel(32)), high = std::ceil(channel(1));
  for (size_t i = 0; i < 64; ++i) {
    const double plain = std::pow(1e6, -2.0 * static_cast<double>(i) / 128);
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    EXPECT_FLOAT_EQ(f[i], static_cast<float>(plain / 4 * ramp + plain * (1 - ramp))) << i;
  }
  EXPECT_NEAR(RopeAttentionFactor(spec), 0.1 * std::log(4.0) + 1, 1e-12);
  EXPECT_FLOAT_EQ((*BuildRopeTable(spec, 1))[0], static_cast<float>(0.1 * std::log(4.0) + 1));
  spec.mscale = 1, spec.mscale_all_dim = 0.5;
  EXPECT_NEAR(RopeAttentionFactor(spec), (0.1 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1),
              1e-12);
  spec.attention_factor = 1.5;
  EXPECT_EQ(RopeAttentionFactor(spec), 1.5);
}

TEST(RopeTable, LinearDividesAndBadSpecsAreRefused) {
  const std::vector<float> plain = *RopeFrequencies({.head_dim = 64});
  const std::vector<float> linear =
      *RopeFrequencies({.type = RopeType::kLinear, .head_dim = 64, .factor = 4});
  for (size_t i = 0; i < 32; ++i) EXPECT_FLOAT_EQ(linear[i], plain[i] / 4);
  EXPECT_FALSE(RopeFrequencies({.head_dim = 63}).ok());
  EXPECT_FALSE(RopeFrequencies({.head_dim = 64, .theta = 0}).ok());
  EXPECT_FALSE(RopeFrequencies({.type = RopeType::kLinear, .head_dim = 64, .factor = 0}).ok());
  EXPECT_FALSE(RopeFrequencies({.type = RopeType::kLlama3, .head_dim = 64, .factor = 8}).ok());
  EXPECT_FALSE(BuildRopeTable({.head_dim = 64}, int64_t{1} << 40).ok());
}

TEST(Norm, IsTrueRmsNorm) {
  constexpr int64_t kCols = 300;
  std::vector<float> x = RandomFloats(kCols, 1);
  for (float& v : x) v += 3;  // a mean that must not be subtracted
  std::vector<float> delta = RandomFloats(kCols, 2);
  const std::vector<float> gain = RandomFloats(kCols, 3);
  std::vector<double> sum(kCols);
  double squares = 0;
  for (size_t i = 0; i < kCols; ++i) {
    sum[i] = static_cast<double>(x[i] + delta[i]);
    squares += sum[i] * sum[i];
  }
  Output out(1, kCols, true, true, 32);
  Rig rig(1);
  ASSERT_TRUE(ReferenceOps()
                  .norm(rig.context, {.residual = {x.data(), 1, kCols, kCols},
                                      .delta = {delta.data(), 1, kCols, kCols},
                                      .gain = gain.data(),
                                      .epsilon = 1e-5f,
                                      .out = out.view})
                  .ok());
  float amax = 0;
  int32_t codes = 0;
  for (size_t i = 0; i < kCols; ++i) {
    const double expected =
        sum[i] / std::sqrt(squares / kCols + 1e-5) * static_cast<double>(gain[i]);
    EXPECT_NEAR(static_cast<double>(out.f32[i]), expected, 1e-6 * std::abs(expected) + 1e-7);
    amax = std::max(amax, std::abs(out.f32[i]));
    codes += out.view.q[32 + i];
    EXPECT_NEAR(out.f32[i], static_cast<float>(out.view.q[32 + i]) * out.scale[0],
                out.scale[0] * 0.501f);
  }
  EXPECT_EQ(out.scale[0], amax / 127.0f);
  EXPECT_EQ(out.row_sum[0], codes);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out.view.q[i], 0) << "the lead is never written";
  for (int64_t i = 32 + kCols; i < out.view.q_stride; ++i) EXPECT_EQ(out.view.q[i], 0);
}

TEST(SiluMul, IsSiluTimesUp) {
  std::vector<float> gate_up = RandomFloats(400, 6, 4.0f);
  gate_up[0] = 0, gate_up[1] = -90, gate_up[2] = 90;
  Output out(1, 200, true, false);
  Rig rig(1);
  ASSERT_TRUE(
      ReferenceOps()
          .silu_mul(rig.context, {.gate_up = {gate_up.data(), 1, 400, 400}, .out = out.view})
          .ok());
  for (size_t i = 0; i < 200; ++i) {
    const double gate = static_cast<double>(gate_up[i]);
    const double expected = gate / (1 + std::exp(-gate)) * static_cast<double>(gate_up[200 + i]);
    EXPECT_NEAR(static_cast<double>(out.f32[i]), expected, 4e-7 * std::abs(expected) + 1e-30);
  }
}

TEST(Activation, ANanIsNotLost) {
  for (const FloatOps& ops : FastOps()) {
    if (!ops.present) continue;
    std::vector<float> gate_up = RandomFloats(200, 6);
    gate_up[37] = NAN;
    Output out(1, 100, false, true);
    Rig rig(1);
    ASSERT_TRUE(
        ops.silu_mul(rig.context, {.gate_up = {gate_up.data(), 1, 200, 200}, .out = out.view})
            .ok());
    EXPECT_TRUE(std::isnan(out.scale[0])) << ops.name;
  }
}

}  // namespace
}  // namespace qserve::kernels::testing
