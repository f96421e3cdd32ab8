// Linears in full precision on the emulated GPU: to the bit the sums that float_linear.h promises,
// for ragged shapes, every type of weights and outputs and several orders of blocks and threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/float_linear.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cuda {
namespace {

size_t Index(int64_t value) { return static_cast<size_t>(value); }

// Reproducible, of both signs and different sizes; exact in fp16 and bf16.
float ValueAt(int64_t i) {
  const auto mixed = static_cast<int>((i * 7919 + i / 13 * 104729 + 17) % 255) - 127;
  return std::ldexp(static_cast<float>(mixed), static_cast<int>(i % 5) - 8);
}

uint16_t Narrow(float x, FloatType type) {
  return type == FloatType::kF16 ? FloatToHalf(x) : FloatToBf16(x);
}

std::vector<uint8_t> BytesOfValues(const std::vector<float>& values, FloatType type) {
  std::vector<uint8_t> bytes(values.size() * Index(BytesOf(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t narrow = Narrow(values[i], type);
    if (type == FloatType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      std::memcpy(bytes.data() + 2 * i, &narrow, 2);
    }
  }
  return bytes;
}

struct Shape {
  int64_t m, n, k;
};

void Check(const Shape& s, FloatType weight_type, FloatType out_type, bool bias, uint64_t seed) {
  const int64_t x_stride = s.k + 3, out_stride = s.n + 5;
  std::vector<float> x(Index(s.m * x_stride), NAN), w(Index(s.n * s.k)), b(Index(s.n));
  for (int64_t r = 0; r < s.m; ++r) {
    for (int64_t k = 0; k < s.k; ++k) x[Index(r * x_stride + k)] = ValueAt(r * s.k + k) / 3;
  }
  for (int64_t i = 0; i < s.n * s.k; ++i) w[Index(i)] = ValueAt(i + 5);
  for (int64_t i = 0; i < s.n; ++i) b[Index(i)] = ValueAt(i + 9);
  const std::vector<float> untouched(Index(s.m * out_stride), -1);
  std::vector<float> expected = untouched;
  for (int64_t r = 0; r < s.m; ++r) {
    for (int64_t n = 0; n < s.n; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < s.k; ++k)
        sum = std::fma(x[Index(r * x_stride + k)], w[Index(n * s.k + k)], sum);
      expected[Index(r * out_stride + n)] = bias ? sum + b[Index(n)] : sum;
    }
  }
  const std::vector<uint8_t> weight = BytesOfValues(w, weight_type);
  std::vector<uint8_t> out = BytesOfValues(untouched, out_type);
  emulator::Stream stream(seed);
  ASSERT_EQ(LaunchFloatLinear(
                &stream, {.weight = weight.data(),
                          .weight_type = weight_type,
                          .bias = bias ? b.data() : nullptr,
                          .x = {.rows = s.m, .cols = s.k, .f32 = x.data(), .f32_stride = x_stride},
                          .out = {out.data(), out_type, s.m, s.n, out_stride}}),
            0);
  stream.Synchronize();
  EXPECT_EQ(out, BytesOfValues(expected, out_type))
      << s.m << " x " << s.n << " x " << s.k << ", seed " << seed;
}

TEST(FloatLinear, HasTheSumsOfItsFormula) {
  for (const Shape& shape : {Shape{1, 1, 1}, {1, 130, 40}, {5, 70, 33}, {64, 64, 16}, {67, 3, 97}})
    for (const uint64_t seed : {0, 1, 2})
      Check(shape, FloatType::kF32, FloatType::kF32, seed == 1, seed);
}

TEST(FloatLinear, ReadsAndWritesNarrowTypes) {
  for (const FloatType weight : {FloatType::kF16, FloatType::kBf16})
    for (const FloatType out : {FloatType::kF32, FloatType::kF16, FloatType::kBf16})
      Check({9, 66, 35}, weight, out, true, 3);
}

}  // namespace
}  // namespace qserve::kernels::cuda
