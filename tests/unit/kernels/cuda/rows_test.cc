// Embedding, copies, norm and SiLU * up on the emulated GPU against the CPU reference: equal to the
// bit where the arithmetic is the same (everything but the order of the norm's sum), codes always
// those of the plain quantizer for the floats beside them.
#include "kernels/cuda/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/math.h"
#include "kernels/cuda/device/row_math.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/quant/activation_quant.h"
#include "kernels/quant/half.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::cuda {
namespace {

using ::qserve::kernels::testing::Output;
using ::qserve::kernels::testing::RandomFloats;
using ::qserve::kernels::testing::Rig;

// A matrix of any element type that begins at a multiple of sixteen bytes, or beside one; what lies
// between its rows is a pattern.
class HostMatrix {
 public:
  HostMatrix(FloatType type, int64_t rows, int64_t cols, int64_t stride, bool aligned = true)
      : type_(type), rows_(rows), cols_(cols), stride_(stride) {
    memory_.assign(static_cast<size_t>(rows * stride * BytesOf(type) + 48), std::byte{0x5a});
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    const uintptr_t offset = (16 - address % 16) % 16 + (aligned ? 0 : 4);
    data_ = memory_.data() + offset;
  }
  HostMatrix(const HostMatrix&) = delete;

  // Rounds to the element type, and the values with it.
  void Fill(std::vector<float>& values) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) {
        float& value = values[static_cast<size_t>(r * cols_ + c)];
        value = Round(type_, value);
        Put(r, c, value);
      }
    }
  }
  static float Round(FloatType type, float x) {
    if (type == FloatType::kF32) return x;
    return type == FloatType::kF16 ? RoundToHalf(x) : Bf16ToFloat(FloatToBf16(x));
  }
  std::vector<float> Values() const {
    std::vector<float> values(static_cast<size_t>(rows_ * cols_));
    for (int64_t r = 0; r < rows_; ++r) {
      WidenFloats(type_, data_ + r * stride_ * BytesOf(type_), cols_, values.data() + r * cols_);
    }
    return values;
  }
  // What lies behind each row is as it was.
  bool GapsAreWhole() const {
    for (int64_t r = 0; r < rows_; ++r) {
      const std::byte* begin = data_ + (r * stride_ + cols_) * BytesOf(type_);
      const std::byte* end = data_ + (r + 1) * stride_ * BytesOf(type_);
      if (std::any_of(begin, end, [](std::byte b) { return b != std::byte{0x5a}; })) return false;
    }
    return true;
  }
  FloatMatrix view() { return {data_, type_, rows_, cols_, stride_}; }

 private:
  void Put(int64_t r, int64_t c, float value) {
    std::byte* to = data_ + (r * stride_ + c) * BytesOf(type_);
    if (type_ == FloatType::kF32) {
      std::memcpy(to, &value, 4);
      return;
    }
    const uint16_t bits = type_ == FloatType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
    std::memcpy(to, &bits, 2);
  }
  FloatType type_;
  int64_t rows_, cols_, stride_;
  std::vector<std::byte> memory_;
  std::byte* data_ = nullptr;
};

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kF16, FloatType::kBf16};
constexpr FloatType kHalves[] = {FloatType::kF16, FloatType::kBf16};

TEST(Rows, EmbedTakesGivenAndSampledIds) {
  constexpr int64_t kTableRows = 9;
  const std::vector<int32_t> token_ids = {100, ~1, 108, 99, ~0, 109, 104};
  const std::vector<int32_t> sampled = {103, 101};
  const std::vector<int32_t> rows = {0, 1, 8, -1, 3, -1, 4};
  for (const FloatType table_type : kTypes) {
    for (const FloatType out_type : kTypes) {
      for (const int64_t cols : {64, 37, 2500}) {
        HostMatrix table(table_type, kTableRows, cols, cols);
        std::vector<float> values = RandomFloats(kTableRows * cols, 5, 2.0f);
        table.Fill(values);
        HostMatrix out(out_type, std::ssize(token_ids), cols, cols + 8);
        emulator::Stream stream(static_cast<uint64_t>(cols));
        ASSERT_EQ(LaunchEmbed(&stream, {.table = table.view().data,
                                        .table_type = table_type,
                                        .first_id = 100,
                                        .table_rows = kTableRows,
                                        .token_ids = token_ids.data(),
                                        .sampled_ids = sampled.data(),
                                        .out = out.view()}),
                  0);
        stream.Synchronize();
        EXPECT_TRUE(out.GapsAreWhole());
        const std::vector<float> got = out.Values();
        for (size_t i = 0; i < got.size(); ++i) {
          const int32_t row = rows[i / static_cast<size_t>(cols)];
          const size_t c = i % static_cast<size_t>(cols);
          const float expected =
              row < 0 ? 0.0f : values[static_cast<size_t>(row) * static_cast<size_t>(cols) + c];
          ASSERT_EQ(got[i], HostMatrix::Round(out_type, expected)) << i;
        }
      }
    }
  }
}

TEST(Rows, CopyRoundsOnceAndKeepsStrides) {
  for (const FloatType to_type : kTypes) {
    for (const bool aligned : {true, false}) {
      HostMatrix from(FloatType::kF32, 3, 2100, 2104, aligned), to(to_type, 3, 2100, 5000);
      std::vector<float> values = RandomFloats(3 * 2100, 8, 100.0f);
      from.Fill(values);
      emulator::Stream stream(3);
      ASSERT_EQ(LaunchCopy(&stream, {.from = from.view(), .to = to.view()}), 0);
      stream.Synchronize();
      for (float& value : values) value = HostMatrix::Round(to_type, value);
      EXPECT_EQ(to.Values(), values);
      EXPECT_TRUE(to.GapsAreWhole());
    }
  }
  HostMatrix a(FloatType::kF32, 3, 8, 8), b(FloatType::kF32, 3, 9, 9);
  emulator::Stream stream;
  EXPECT_EQ(LaunchCopy(&stream, {.from = a.view(), .to = b.view()}), kInvalidRows);
}

void ExpectCodesOfFloats(const Output& out) {
  std::vector<int8_t> codes(static_cast<size_t>(out.view.cols));
  for (int64_t r = 0; r < out.view.rows; ++r) {
    const QuantizedRow row =
        QuantizeRow(out.view.f32 + r * out.view.f32_stride, out.view.cols, codes.data());
    EXPECT_EQ(out.view.scale[r], row.scale);
    EXPECT_EQ(out.view.row_sum[r], row.sum);
    const int8_t* q = out.view.q + r * out.view.q_stride;
    EXPECT_TRUE(std::equal(codes.begin(), codes.end(), q + out.view.lead)) << "row " << r;
    const auto zero = [](int8_t code) { return code == 0; };
    EXPECT_TRUE(std::all_of(q, q + out.view.lead, zero));
    EXPECT_TRUE(std::all_of(q + out.view.lead + out.view.cols, q + out.view.q_stride, zero));
  }
}

struct NormCase {
  int64_t cols = 0;
  int64_t lead = 0;
  bool delta = true;
  bool gather = false;
  bool aligned = true;
};

void CheckNorm(FloatType type, const NormCase& c, uint64_t seed) {
  const int64_t rows = c.cols > 4000 ? 2 : 4;
  const std::vector<int32_t> gathered =
      c.gather ? std::vector<int32_t>{1, 0, 1} : std::vector<int32_t>{};
  const int64_t out_rows = c.gather ? std::ssize(gathered) : rows;
  HostMatrix residual(type, rows, c.cols, c.cols + 8, c.aligned), delta(type, rows, c.cols, c.cols);
  HostMatrix gain(FloatType::kF32, 1, c.cols, c.cols);
  std::vector<float> x = RandomFloats(rows * c.cols, 1 + seed, 3.0f);
  std::vector<float> y = RandomFloats(rows * c.cols, 2), g = RandomFloats(c.cols, 3);
  residual.Fill(x);
  delta.Fill(y);
  gain.Fill(g);
  Output actual(out_rows, c.cols, true, true, c.lead);
  emulator::Stream stream(seed);
  ASSERT_EQ(
      LaunchNorm(&stream, {.residual = residual.view(),
                           .delta = c.delta ? ConstFloatMatrix(delta.view()) : ConstFloatMatrix(),
                           .gain = static_cast<const float*>(gain.view().data),
                           .epsilon = 1e-5f,
                           .rows = c.gather ? gathered.data() : nullptr,
                           .out = actual.view}),
      0);
  stream.Synchronize();
  if (c.delta) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = HostMatrix::Round(type, x[i] + y[i]);
  }
  EXPECT_EQ(residual.Values(), x) << "the residual holds the rounded sum";
  EXPECT_TRUE(residual.GapsAreWhole());
  Output expected(out_rows, c.cols, true, true, c.lead);
  Rig rig(1);
  ASSERT_TRUE(cpu::reference::Norm(rig.context, {.residual = {x.data(), rows, c.cols, c.cols},
                                                 .delta = {},
                                                 .gain = g.data(),
                                                 .epsilon = 1e-5f,
                                                 .rows = gathered,
                                                 .out = expected.view})
                  .ok());
  for (size_t i = 0; i < expected.f32.size(); ++i) {
    // The sums of squares differ in order, hence a few units in the last place.
    ASSERT_NEAR(actual.f32[i], expected.f32[i], 1e-6f * (1 + std::fabs(expected.f32[i]))) << i;
  }
  ExpectCodesOfFloats(actual);
}

TEST(Rows, NormIsThatOfTheReference) {
  for (const FloatType type : kHalves) {
    for (const uint64_t seed : {0u, 1u, 2u}) {
      CheckNorm(type, {.cols = 128}, seed);
      CheckNorm(type, {.cols = 1000, .lead = 32, .gather = true}, seed);
    }
    CheckNorm(type, {.cols = 77, .lead = 3}, 1);
    CheckNorm(type, {.cols = 520, .delta = false, .gather = true, .aligned = false}, 1);
    CheckNorm(type, {.cols = 1608, .lead = 96, .delta = false}, 1);
    CheckNorm(type, {.cols = 4096}, 1);
    CheckNorm(type, {.cols = 5000, .aligned = false}, 1);
  }
  CheckNorm(FloatType::kBf16, {.cols = 16384}, 1);
}

TEST(Rows, NormOfARowDoesNotDependOnTheOthers) {
  std::vector<float> x = RandomFloats(3 * 640, 1);
  HostMatrix all(FloatType::kF16, 3, 640, 640), one(FloatType::kF16, 1, 640, 640);
  HostMatrix gain(FloatType::kF32, 1, 640, 640);
  std::vector<float> last(x.begin() + 1280, x.end()), ones(640, 1.0f);
  all.Fill(x);
  one.Fill(last);
  gain.Fill(ones);
  Output together(3, 640, true, true), alone(1, 640, true, true);
  const auto* gains = static_cast<const float*>(gain.view().data);
  emulator::Stream stream(4);
  LaunchNorm(&stream, {.residual = all.view(), .gain = gains, .out = together.view});
  LaunchNorm(&stream, {.residual = one.view(), .gain = gains, .out = alone.view});
  stream.Synchronize();
  EXPECT_TRUE(
      std::equal(alone.f32.begin(), alone.f32.begin() + 640, together.f32.begin() + 2 * 643));
  EXPECT_EQ(alone.scale[0], together.scale[2]);
  EXPECT_EQ(alone.row_sum[0], together.row_sum[2]);
}

TEST(Rows, ShapesWithoutAKernelAreRefused) {
  emulator::Stream stream;
  HostMatrix wide(FloatType::kF16, 1, kMaxRowColumns + 8, kMaxRowColumns + 8);
  HostMatrix plain(FloatType::kF32, 1, 8, 8);
  Output out(1, kMaxRowColumns + 8, true, false), small(1, 8, true, false);
  const float* gain = nullptr;
  EXPECT_EQ(LaunchNorm(&stream, {.residual = wide.view(), .gain = gain, .out = out.view}),
            kInvalidRows);
  EXPECT_EQ(LaunchNorm(&stream, {.residual = plain.view(), .gain = gain, .out = small.view}),
            kInvalidRows);
  EXPECT_EQ(LaunchSiluMul(&stream, {.gate_up = plain.view(), .out = small.view}), kInvalidRows);
}

void CheckSiluMul(FloatType type, int64_t cols, int64_t lead, int64_t extra, uint64_t seed) {
  const int64_t rows = cols > 4000 ? 1 : 3;
  HostMatrix gate_up(type, rows, 2 * cols, 2 * cols + extra);
  std::vector<float> values = RandomFloats(rows * 2 * cols, 7, 6.0f);
  values[0] = -100.0f;  // exp overflows its polynomial's range
  gate_up.Fill(values);
  Output actual(rows, cols, true, true, lead), expected(rows, cols, true, true, lead);
  emulator::Stream stream(seed);
  ASSERT_EQ(LaunchSiluMul(&stream, {.gate_up = gate_up.view(), .out = actual.view}), 0);
  stream.Synchronize();
  Rig rig(1);
  const ConstFloatMatrix wide = {values.data(), rows, 2 * cols, 2 * cols};
  ASSERT_TRUE(cpu::reference::SiluMul(rig.context, {.gate_up = wide, .out = expected.view}).ok());
  EXPECT_TRUE(actual == expected) << cols << " columns";
}

TEST(Rows, SiluMulHasTheBitsOfTheReference) {
  for (const FloatType type : kHalves) {
    for (const uint64_t seed : {0u, 1u, 2u}) CheckSiluMul(type, 344, 32, 8, seed);
    CheckSiluMul(type, 129, 5, 0, 1);
    CheckSiluMul(type, 1500, 0, 4, 1);
    CheckSiluMul(type, 4100, 64, 0, 1);
  }
  CheckSiluMul(FloatType::kF16, 9000, 0, 0, 1);
  CheckSiluMul(FloatType::kBf16, 28672, 0, 0, 1);
}

TEST(Rows, ExpAndLogHaveTheBitsOfTheCpu) {
  for (int i = -100000; i <= 100000; ++i) {
    const float x = static_cast<float>(i) * 0.00095f;
    ASSERT_EQ(BitsOf(Exponential(x)), BitsOf(cpu::Exp(x))) << x;
    const float u = (static_cast<float>(i + 100000) * 41.0f + 0.5f) * 0x1p-23f;
    ASSERT_EQ(BitsOf(Logarithm(u)), BitsOf(cpu::Log(u))) << u;
  }
  EXPECT_EQ(Exponential(-INFINITY), 0.0f);
}

}  // namespace
}  // namespace qserve::kernels::cuda
