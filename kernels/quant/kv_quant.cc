// Rounding of keys and values, see kv_quant.h; and the size of a KV page, which follows from it.
#include "kernels/quant/kv_quant.h"

#include <cmath>

#include "kernels/backend.h"
#include "kernels/quant/half.h"

namespace qserve::kernels {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr float kSmallestScale = 0x1p-22f;

// Keeps NaN.
float Saturate(float x) {
  if (x > kLargestHalf) return kLargestHalf;
  return x < -kLargestHalf ? -kLargestHalf : x;
}

}  // namespace

int64_t KvPageBytes(const KvShape& shape) {
  int64_t bits = 4;
  if (shape.format == KvFormat::kInt8) bits = 8;
  if (shape.format == KvFormat::kF16) bits = 16;
  if (shape.format == KvFormat::kF32) bits = 32;
  const int64_t parameters = KvLevels(shape.format) > 0 ? 4 : 0;
  return int64_t{2} * shape.kv_heads * kKvPageTokens * (shape.head_dim * bits / 8 + parameters);
}

int KvLevels(KvFormat format) {
  if (format == KvFormat::kInt4) return 15;
  return format == KvFormat::kInt8 ? 255 : 0;
}

KvParameters ChooseKvParameters(float min, float max, int levels) {
  KvParameters parameters;
  parameters.minimum_half = FloatToHalf(Saturate(min) + 0.0f);  // + 0 turns -0 into 0
  parameters.minimum = HalfToFloat(parameters.minimum_half);
  parameters.scale_half = FloatToHalf(Saturate((max - min) / static_cast<float>(levels)));
  parameters.scale = HalfToFloat(parameters.scale_half);
  if (parameters.scale < kSmallestScale) {
    parameters.scale_half = 0;
    parameters.scale = 0;
  } else {
    parameters.inverse = 1.0f / parameters.scale;
  }
  return parameters;
}

KvParameters QuantizeKv(const float* x, int n, int levels, uint8_t* codes) {
  float min = x[0], max = x[0];
  for (int i = 1; i < n; ++i) {
    min = x[i] < min ? x[i] : min;
    max = x[i] > max ? x[i] : max;
  }
  const KvParameters parameters = ChooseKvParameters(min, max, levels);
  const float top = static_cast<float>(levels);
  for (int i = 0; i < n; ++i) {
    const float code = std::nearbyint((x[i] - parameters.minimum) * parameters.inverse);
    codes[i] = static_cast<uint8_t>(code > 0.0f ? (code < top ? code : top) : 0.0f);  // NaN: 0
  }
  return parameters;
}

void SimulateKv(KvFormat format, float* x, int n) {
  if (format == KvFormat::kF32) return;
  if (format == KvFormat::kF16) {
    for (int i = 0; i < n; ++i) x[i] = RoundToHalf(x[i]);
    return;
  }
  const int levels = KvLevels(format);
  constexpr int kStep = 256;
  uint8_t codes[kStep];
  for (int start = 0; start < n;
       start += kStep) {  // vectors are at most 256 long, a whole one each
    const int count = n - start < kStep ? n - start : kStep;
    const KvParameters parameters = QuantizeKv(x + start, count, levels, codes);
    for (int i = 0; i < count; ++i) {
      x[start + i] = static_cast<float>(codes[i]) * parameters.scale + parameters.minimum;
    }
  }
}

}  // namespace qserve::kernels
