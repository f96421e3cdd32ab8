// Cases of the linear operation.
#include "tests/ops/linear_cases.h"

#include <algorithm>
#include <cstring>

#include "kernels/quant/half.h"

namespace qserve::kernels::testing {
namespace {

// SplitMix64: any seed, no state beyond a counter.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int Below(int bound) { return static_cast<int>(Next() % static_cast<uint64_t>(bound)); }
  int Between(int low, int high) { return low + Below(high - low + 1); }
  float Uniform() { return static_cast<float>(Next() >> 40) * 0x1p-23f - 1.0f; }  // [-1, 1)

 private:
  uint64_t state_;
};

size_t Count(int64_t n) { return static_cast<size_t>(n); }

// A scale and an offset for each group, and codes that stay in int8 with them. Now and then a scale
// beyond our quantizer's 16.
void FillGroups(const LinearCase& c, Random& random, LinearWeight& w) {
  w.group_scale.resize(Count(w.n * w.groups()));
  w.group_offset.resize(Count(w.n * w.groups()));
  for (int64_t row = 0; row < w.n; ++row) {
    for (int64_t g = 0; g < w.groups(); ++g) {
      const int scale = c.extreme               ? 16
                        : random.Below(20) == 0 ? random.Between(17, 127)
                                                : random.Between(1, 16);
      const int zero = c.extreme ? 8 : random.Below(16);
      const auto at = Count(row * w.groups() + g);
      w.group_scale[at] = static_cast<uint8_t>(scale);
      w.group_offset[at] = static_cast<int16_t>(-zero * scale);
      const int low = std::max(0, zero - 128 / scale);
      const int high = std::min(15, zero + 127 / scale);
      for (int64_t k = std::max<int64_t>(0, g * kWeightGroup - w.lead);
           k < std::min(w.k, (g + 1) * kWeightGroup - w.lead); ++k) {
        const int code = c.extreme ? (row % 2 == 0 ? high : low) : random.Between(low, high);
        w.codes[Count(row * w.k + k)] = static_cast<uint8_t>(code);
      }
    }
  }
}

void FillCodes(const LinearCase& c, Random& random, LinearWeight& w) {
  w.codes.resize(Count(w.n * w.k));
  if (c.format == WeightFormat::kW4Group128) {
    FillGroups(c, random, w);
    return;
  }
  for (int64_t i = 0; i < w.n * w.k; ++i) {
    const bool even = i / w.k % 2 == 0;
    int code = c.extreme ? (even ? 15 : 0) : random.Below(16);
    if (c.format == WeightFormat::kW8)
      code = c.extreme ? (even ? 127 : -127) : random.Between(-127, 127);
    w.codes[Count(i)] = static_cast<uint8_t>(code);
  }
}

void FillFloats(Random& random, LinearWeight& w) {
  const size_t size = w.float_type == FloatType::kF32 ? 4 : 2;
  w.floats.resize(Count(w.n * w.k) * size);
  for (int64_t i = 0; i < w.n * w.k; ++i) {
    const float value = random.Uniform();
    const uint16_t narrow =
        w.float_type == FloatType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
    uint8_t* to = w.floats.data() + Count(i) * size;
    if (size == 4) {
      std::memcpy(to, &value, 4);
    } else {
      std::memcpy(to, &narrow, 2);
    }
  }
}

std::vector<LinearCase> BuildCases() {
  constexpr WeightFormat kFormats[] = {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel,
                                       WeightFormat::kW8, WeightFormat::kHalfFixedOrder};
  std::vector<LinearCase> cases;
  for (const WeightFormat format : kFormats) {
    for (const int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 64, 70, 97}) {
      cases.push_back({.format = format, .n = 72, .k = 256, .m = m, .bias = m % 2 == 0});
    }
    for (const int64_t n : {1, 8, 16, 24, 31, 32, 33, 48, 96})
      cases.push_back({.format = format, .n = n, .k = 160, .m = 5});
    for (const int64_t k : {32, 96, 128, 384, 1152, 2208}) {
      cases.push_back({.format = format, .n = 40, .k = k, .m = 7, .bias = true});
    }
    cases.push_back({.format = format, .n = 48, .k = 9 * 128, .m = 200});
    cases.push_back({.format = format, .n = 40, .k = 160, .m = 600});
    if (!TakesInt8(format)) continue;
    for (const int64_t lead : {32, 64, 96, 127}) {
      cases.push_back({.format = format, .n = 64, .k = 224, .m = 9, .lead = lead, .bias = true});
    }
    cases.push_back({.format = format, .n = 34, .k = 14336, .m = 8, .extreme = true});
  }
  return cases;
}

}  // namespace

const char* FormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFloat:
      return "float";
    case WeightFormat::kHalfFixedOrder:
      return "half";
    case WeightFormat::kW8:
      return "w8";
    case WeightFormat::kW4PerChannel:
      return "w4_channel";
    case WeightFormat::kW4Group128:
      return "w4_group";
  }
  return "?";
}

std::string LinearCase::Name() const {
  return std::string(FormatName(format)) + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
         " m=" + std::to_string(m) + " lead=" + std::to_string(lead) + (bias ? " bias" : "") +
         (extreme ? " extreme" : "");
}

const std::vector<LinearCase>& LinearCases() {
  static const std::vector<LinearCase> cases = BuildCases();
  return cases;
}

LinearWeight MakeWeight(const LinearCase& c, uint64_t seed) {
  Random random(seed);
  LinearWeight w;
  w.format = c.format;
  w.float_type = c.format == WeightFormat::kHalfFixedOrder ? FloatType::kF16 : FloatType::kF32;
  w.n = c.n;
  w.k = c.k;
  w.lead = c.lead;
  if (TakesInt8(c.format)) {
    FillCodes(c, random, w);
    for (int64_t n = 0; n < c.n; ++n)
      w.scale.push_back(RoundToHalf(0.01f + 0.001f * random.Uniform()));
    if (c.format == WeightFormat::kW4PerChannel) {
      for (int64_t n = 0; n < c.n; ++n)
        w.scaled_zero.push_back(RoundToHalf(0.07f + 0.02f * random.Uniform()));
    }
  } else {
    FillFloats(random, w);
  }
  for (int64_t n = 0; c.bias && n < c.n; ++n) w.bias.push_back(RoundToHalf(random.Uniform()));
  return w;
}

HostActivation MakeActivation(const LinearCase& c, uint64_t seed) {
  Random random(seed);
  HostActivation a;
  a.view.rows = c.m;
  a.view.cols = c.k;
  if (!TakesInt8(c.format)) {
    a.view.f32_stride = c.k + 3;
    a.f32.resize(Count(c.m * a.view.f32_stride + 1));
    for (float& value : a.f32) value = random.Uniform();
    a.view.f32 = a.f32.data();
    return a;
  }
  a.view.lead = c.lead;
  a.view.q_stride = PaddedColumns(c.lead, c.k);
  a.q.resize(Count(c.m * a.view.q_stride + 1));
  for (int64_t m = 0; m < c.m; ++m) {
    int32_t sum = 0;
    for (int64_t k = 0; k < c.k; ++k) {
      const int value = c.extreme ? (m % 2 == 0 ? 127 : -127) : random.Between(-127, 127);
      a.q[Count(m * a.view.q_stride + c.lead + k)] = static_cast<int8_t>(value);
      sum += value;
    }
    a.scale.push_back(0.02f + 0.01f * random.Uniform());
    a.row_sum.push_back(sum);
  }
  a.view.q = a.q.data();
  a.view.scale = a.scale.data();
  a.view.row_sum = a.row_sum.data();
  return a;
}

}  // namespace qserve::kernels::testing
