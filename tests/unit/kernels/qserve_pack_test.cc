// QServe's order against goldens made by another derivation, round trips, slices and refusals.
#include "kernels/quant/qserve_pack.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>

#include "kernels/quant/half.h"
#include "kernels/quant/rtn.h"

namespace qserve::kernels {
namespace {

using Bytes = std::vector<uint8_t>;

std::map<std::string, Bytes> Goldens() {
  std::ifstream file("tests/golden/kernels/qserve_pack.txt");
  std::map<std::string, Bytes> goldens;
  for (std::string name, hex; file >> name >> hex;) {
    Bytes bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
      bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    goldens[name] = bytes;
  }
  return goldens;
}

std::vector<float> Values(int64_t n, int64_t k) {
  std::vector<float> values(static_cast<size_t>(n * k));
  uint32_t state = 12345;
  for (float& value : values)
    value = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 0.9f;
  return values;
}

LinearWeight Quantized(WeightFormat format, int64_t n, int64_t k) {
  const std::vector<float> values = Values(n, k);
  LinearWeight w = format == WeightFormat::kW4Group128 ? *RtnGroup128(values.data(), n, k)
                                                       : *RtnPerChannel(values.data(), n, k);
  for (int64_t i = 0; i < n; ++i) w.bias.push_back(static_cast<float>(i) * 0.5f);
  return w;
}

void ExpectEqual(const LinearWeight& a, const LinearWeight& b) {
  EXPECT_EQ(a.format, b.format);
  EXPECT_EQ(a.n, b.n);
  EXPECT_EQ(a.k, b.k);
  EXPECT_EQ(a.lead, b.lead);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scale, b.scale);
  EXPECT_EQ(a.scaled_zero, b.scaled_zero);
  EXPECT_EQ(a.group_scale, b.group_scale);
  EXPECT_EQ(a.group_offset, b.group_offset);
  EXPECT_EQ(a.bias, b.bias);
}

TEST(QServePack, EqualsTheOrderOfQServesConverters) {
  std::map<std::string, Bytes> goldens = Goldens();
  ASSERT_EQ(goldens.size(), 6u) << "run from the root of the repository";
  LinearWeight w;
  w.format = WeightFormat::kW4Group128;
  w.n = 64;
  w.k = 256;
  w.codes = goldens["codes"];
  w.scale.assign(64, 0.25f);
  w.group_scale = goldens["group_scale"];
  for (size_t i = 0; i < w.group_scale.size(); ++i) {
    w.group_offset.push_back(static_cast<int16_t>(-goldens["zero"][i] * w.group_scale[i]));
  }
  const StatusOr<QServeTensors> packed = PackQServe(w);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  EXPECT_EQ(packed->qweight, goldens["qweight"]);
  EXPECT_EQ(packed->s2_scales, goldens["s2_scales"]);
  EXPECT_EQ(packed->s2_zeros, goldens["s2_zeros"]);
  EXPECT_EQ(packed->s1_scales, std::vector<uint16_t>(64, FloatToHalf(0.25f)));
  const StatusOr<LinearWeight> back = UnpackQServe(ViewOf(*packed), {0, 64, 0, 256}, nullptr);
  ASSERT_TRUE(back.ok()) << back.status().message();
  ExpectEqual(*back, w);
}

// One code at a time through the closed formula: each has its own nibble, and together they fill
// every nibble.
TEST(QServePack, EveryCodeIsStoredOnceWhereTheFormulaSays) {
  LinearWeight w = Quantized(WeightFormat::kW4PerChannel, 32, 64);
  std::vector<int> filled(32 * 64, 0);
  for (int64_t n = 0; n < 32; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      w.codes.assign(32 * 64, 0);
      w.codes[static_cast<size_t>(n * 64 + k)] = 15;
      const Bytes bytes = PackQServe(w)->qweight;
      const int64_t lane = n % 8 * 4 + k % 16 / 4;
      const int64_t byte = k / 32 * 512 + lane * 16 + k % 32 / 16 * 8 + n % 16 / 8 * 4 + k % 4;
      for (int64_t i = 0; i < static_cast<int64_t>(bytes.size()); ++i) {
        ASSERT_EQ(bytes[static_cast<size_t>(i)], i != byte ? 0 : n % 32 < 16 ? 0x0f : 0xf0);
      }
      ++filled[static_cast<size_t>(byte * 2 + (n % 32 < 16 ? 0 : 1))];
    }
  }
  EXPECT_EQ(filled, std::vector<int>(32 * 64, 1));
}

TEST(QServePack, SurvivesARoundTrip) {
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel}) {
    const LinearWeight w = Quantized(format, 96, 384);
    const StatusOr<QServeTensors> packed = PackQServe(w);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const StatusOr<LinearWeight> back = UnpackQServe(ViewOf(*packed), {0, 96, 0, 384}, nullptr);
    ASSERT_TRUE(back.ok()) << back.status().message();
    ExpectEqual(*back, w);
  }
}

// Every slice of whole tiles, straddling groups included, equals the same cut of the whole; only
// its bytes are touched.
TEST(QServePack, SlicesEqualTheWholeCutUp) {
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel}) {
    const LinearWeight whole = Quantized(format, 64, 256);
    const QServeTensors packed = *PackQServe(whole);
    for (int64_t k0 = 0; k0 < 256; k0 += 32) {
      for (int64_t k1 = k0 + 32; k1 <= 256; k1 += 32) {
        int64_t touched = 0;
        const StatusOr<LinearWeight> slice =
            UnpackQServe(ViewOf(packed), {32, 64, k0, k1}, &touched);
        ASSERT_TRUE(slice.ok()) << slice.status().message();
        ASSERT_TRUE(Validate(*slice).ok()) << Validate(*slice).message();
        const LinearWeight cut = SliceColumns(whole, k0, k1);
        ASSERT_EQ(slice->lead, k0 % 128);
        ASSERT_EQ(slice->groups(), cut.groups());
        std::vector<float> expected(static_cast<size_t>(k1 - k0));
        std::vector<float> got = expected;
        for (int64_t row = 0; row < 32; ++row) {
          DequantizeRow(cut, 32 + row, expected.data());
          DequantizeRow(*slice, row, got.data());
          ASSERT_EQ(got, expected);
        }
        ASSERT_EQ(slice->bias.empty(), k0 != 0);
        ASSERT_LE(touched, 32 * ((k1 - k0) / 2 + 6 + 2 * cut.groups()));
      }
    }
  }
}

// Any offset that keeps the stored codes in int8 comes back, not only multiples of the scale
// (PostScale zeros), nor only negative ones.
TEST(QServePack, RecoversEveryLegalOffset) {
  for (const int scale : {1, 2, 7, 16, 17, 127}) {
    for (int offset = -254; offset <= 127; ++offset) {
      LinearWeight w = Quantized(WeightFormat::kW4Group128, 32, 128);
      w.codes.assign(w.codes.size(), 0);
      uint8_t lowest = 255;
      for (uint8_t code = 0; code < 16; ++code) {
        if (code * scale + offset < -128 || code * scale + offset > 127) continue;
        lowest = std::min(lowest, code);
        w.codes[0] = code;
      }
      if (lowest == 255) continue;
      for (size_t i = 1; i < w.codes.size(); ++i) w.codes[i] = lowest;
      w.group_scale.assign(32, static_cast<uint8_t>(scale));
      w.group_offset.assign(32, static_cast<int16_t>(offset));
      const StatusOr<QServeTensors> packed = PackQServe(w);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      const StatusOr<LinearWeight> back = UnpackQServe(ViewOf(*packed), {0, 32, 0, 128}, nullptr);
      ASSERT_TRUE(back.ok()) << back.status().message();
      ASSERT_EQ(back->group_offset, w.group_offset) << "scale " << scale;
    }
  }
}

TEST(QServePack, RefusesWhatCannotBe) {
  LinearWeight w = Quantized(WeightFormat::kW4Group128, 32, 256);
  const QServeTensors good = *PackQServe(w);
  EXPECT_FALSE(PackQServe(Quantized(WeightFormat::kW4PerChannel, 40, 64)).ok());
  EXPECT_FALSE(PackQServe(Quantized(WeightFormat::kW4Group128, 32, 160)).ok());
  w.scale[3] = 0.1f;  // not an fp16 value
  EXPECT_FALSE(PackQServe(w).ok());

  EXPECT_FALSE(UnpackQServe(ViewOf(good), {0, 32, 0, 272}, nullptr).ok());
  EXPECT_FALSE(UnpackQServe(ViewOf(good), {0, 16, 0, 256}, nullptr).ok());
  EXPECT_FALSE(UnpackQServe(ViewOf(good), {0, 32, 64, 64}, nullptr).ok());
  EXPECT_FALSE(UnpackQServe(ViewOf(good), {-32, 32, 0, 256}, nullptr).ok());
  const auto refused = [&](auto damage) {
    QServeTensors bad = good;
    damage(bad);
    return !UnpackQServe(ViewOf(bad), {0, 32, 0, 256}, nullptr).ok();
  };
  EXPECT_TRUE(refused([](QServeTensors& t) { t.qweight.pop_back(); }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.s2_scales[7] = 0; }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.s2_scales[7] = 200; }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.s2_zeros.clear(); }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.s1_scales[2] = 0x7c00; }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.s1_szeros.resize(32); }));
  EXPECT_TRUE(refused([](QServeTensors& t) { t.n = int64_t{1} << 60; }));
  EXPECT_TRUE(
      refused([](QServeTensors& t) {  // codes 0 and 15 sixteen apart: 240 wide, at the wrong place
        t.s2_scales.assign(t.s2_scales.size(), 16);
        t.s2_zeros.assign(t.s2_zeros.size(), 64);
        for (uint8_t& byte : t.qweight) byte = 0xf0;
        t.qweight[0] = 0x0f;
      }));
}

}  // namespace
}  // namespace qserve::kernels
