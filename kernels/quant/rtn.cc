// Round-to-nearest quantization; formulas in rtn.h.
#include "kernels/quant/rtn.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "kernels/quant/half.h"

namespace qserve::kernels {
namespace {

constexpr float kSmallestHalf = 0x1p-24f;

// Smallest and largest of 0 and the values.
struct Extent {
  float low = 0;
  float high = 0;
  float magnitude() const { return std::max(-low, high); }
};

Extent ExtentOf(const float* values, int64_t count) {
  constexpr int64_t kLanes = 8;  // for vector code: neither order nor number of them shows
  float low[kLanes] = {}, high[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      low[lane] = std::min(low[lane], values[i + lane]);
      high[lane] = std::max(high[lane], values[i + lane]);
    }
  }
  for (; i < count; ++i) {
    low[0] = std::min(low[0], values[i]);
    high[0] = std::max(high[0], values[i]);
  }
  return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes)};
}

// A weight of the given shape with the vectors of its format allocated, once every value is known
// to be finite.
StatusOr<LinearWeight> Prepare(WeightFormat format, const float* weights, int64_t n, int64_t k) {
  if (n <= 0 || k <= 0 || n > (int64_t{1} << 26) || k > 131072) {
    return InvalidArgument("round to nearest: shape " + std::to_string(n) + " x " +
                           std::to_string(k) + " is out of range");
  }
  bool any = false;  // where and which only if there is one
  for (int64_t i = 0; i < n * k; ++i) {
    any |= (std::bit_cast<uint32_t>(weights[i]) & 0x7f800000u) == 0x7f800000u;
  }
  for (int64_t i = 0; any && i < n * k; ++i) {
    if (!std::isfinite(weights[i])) {
      return InvalidArgument("round to nearest: weight (" + std::to_string(i / k) + ", " +
                             std::to_string(i % k) + ") is not finite");
    }
  }
  LinearWeight w;
  w.format = format;
  w.n = n;
  w.k = k;
  w.codes.resize(static_cast<size_t>(n * k));
  w.scale.resize(static_cast<size_t>(n));
  if (format == WeightFormat::kW4PerChannel) w.scaled_zero.resize(static_cast<size_t>(n));
  if (format == WeightFormat::kW4Group128) {
    w.group_scale.resize(static_cast<size_t>(n * w.groups()));
    w.group_offset.resize(static_cast<size_t>(n * w.groups()));
  }
  return w;
}

// fp16, at least the smallest one above zero: nothing divides by zero, and an all-zero row has
// codes that mean 0 all the same.
Status StoredScale(float exact, int64_t row, float& scale) {
  scale = std::max(RoundToHalf(exact), kSmallestHalf);
  if (std::isfinite(scale)) return {};
  return InvalidArgument("round to nearest: the scale of row " + std::to_string(row) +
                         " is beyond fp16");
}

// nearbyint for magnitudes below 2^22, where adding 1.5 * 2^23 leaves no bit behind the point; a
// call of the library's for every weight of a vocabulary takes seconds.
float NearestInteger(float value) {
  constexpr float kPoint = 0x1.8p23f;
  return (value + kPoint) - kPoint;
}

uint8_t Code(float value) { return static_cast<uint8_t>(std::clamp(value, 0.0f, 15.0f)); }

// One group of level 2. `w8` holds `count` values of magnitude at most 119.
void QuantizeGroup(const float* w8, int64_t count, uint8_t* codes, uint8_t& scale,
                   int16_t& offset) {
  const Extent extent = ExtentOf(w8, count);
  const float step = std::max(1.0f, std::nearbyint((extent.high - extent.low) / 15.0f));
  const float zero = std::clamp(std::nearbyint(-extent.low / step), 0.0f, 15.0f);
  for (int64_t i = 0; i < count; ++i) codes[i] = Code(std::nearbyint(w8[i] / step) + zero);
  scale = static_cast<uint8_t>(step);
  offset = static_cast<int16_t>(-zero * step);
}

}  // namespace

StatusOr<LinearWeight> RtnGroup128(const float* weights, int64_t n, int64_t k) {
  StatusOr<LinearWeight> prepared = Prepare(WeightFormat::kW4Group128, weights, n, k);
  if (!prepared.ok()) return prepared;
  LinearWeight& w = *prepared;
  for (int64_t row = 0; row < n; ++row) {
    const float* from = weights + row * k;
    float& scale = w.scale[static_cast<size_t>(row)];
    if (Status status = StoredScale(ExtentOf(from, k).magnitude() / kProtectedRange, row, scale);
        !status.ok())
      return status;
    for (int64_t g = 0; g < w.groups(); ++g) {
      const int64_t begin = g * kWeightGroup;
      const int64_t count = std::min<int64_t>(kWeightGroup, k - begin);
      float w8[kWeightGroup];
      for (int64_t i = 0; i < count; ++i)
        w8[i] = std::clamp(from[begin + i] / scale, -kProtectedRange, kProtectedRange);
      const auto at = static_cast<size_t>(row * w.groups() + g);
      QuantizeGroup(w8, count, w.codes.data() + row * k + begin, w.group_scale[at],
                    w.group_offset[at]);
    }
  }
  return prepared;
}

StatusOr<LinearWeight> RtnPerChannel(const float* weights, int64_t n, int64_t k) {
  StatusOr<LinearWeight> prepared = Prepare(WeightFormat::kW4PerChannel, weights, n, k);
  if (!prepared.ok()) return prepared;
  LinearWeight& w = *prepared;
  for (int64_t row = 0; row < n; ++row) {
    const float* from = weights + row * k;
    const Extent extent = ExtentOf(from, k);
    float& scale = w.scale[static_cast<size_t>(row)];
    if (Status status = StoredScale((extent.high - extent.low) / 15.0f, row, scale); !status.ok())
      return status;
    const float zero = std::clamp(std::nearbyint(-extent.low / scale), 0.0f, 15.0f);
    const float scaled_zero = RoundToHalf(zero * scale);
    if (!std::isfinite(scaled_zero)) {
      return InvalidArgument("round to nearest: the zero of row " + std::to_string(row) +
                             " is beyond fp16");
    }
    w.scaled_zero[static_cast<size_t>(row)] = scaled_zero;
    for (int64_t c = 0; c < k; ++c) {
      w.codes[static_cast<size_t>(row * k + c)] =
          Code(std::nearbyint((from[c] + scaled_zero) / scale));
    }
  }
  return prepared;
}

StatusOr<LinearWeight> RtnInt8PerRow(const float* weights, int64_t n, int64_t k) {
  StatusOr<LinearWeight> prepared = Prepare(WeightFormat::kW8, weights, n, k);
  if (!prepared.ok()) return prepared;
  LinearWeight& w = *prepared;
  for (int64_t row = 0; row < n; ++row) {
    const float* from = weights + row * k;
    const float scale = std::max(ExtentOf(from, k).magnitude() / 127.0f, 0x1p-126f);
    w.scale[static_cast<size_t>(row)] = scale;
    uint8_t* to = w.codes.data() + row * k;
    for (int64_t c = 0; c < k; ++c) {
      const float code = std::clamp(from[c] / scale, -127.0f, 127.0f);
      to[c] = static_cast<uint8_t>(static_cast<int8_t>(NearestInteger(code)));
    }
  }
  return prepared;
}

}  // namespace qserve::kernels
