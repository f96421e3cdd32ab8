// Full-precision linears by bf16 products: every implementation against the arithmetic that
// kernels/cpu/bf16_panel.h states, written once more over whole weights, to the bit; and against
// exact products within what bf16 can hold. Instruction sets that the machine lacks are skipped by
// name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/bf16_tiles.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/workspace.h"
#include "kernels/device_factory.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::testing {
namespace {

using LinearFunction = decltype(cpu::OpTable::linear_bf16);

struct Implementation {
  std::string name;
  bool present = true;
  LinearFunction linear = nullptr;
};

std::vector<Implementation> Implementations() {
  std::vector<Implementation> all = {
      {"emulated_16_lanes", true, cpu::emulated::LinearBf16Of16Lanes},
      {"emulated_tiles", true, cpu::emulated::LinearBf16ByTiles},
  };
  for (const cpu::OpTable* table : cpu::AllOpTables())
    all.push_back({table->isa, table->supported(), table->linear_bf16});
  return all;
}

struct Problem {
  LinearCase shape;
  LinearWeight weight;
  HostActivation x;
};

Problem MakeProblem(const LinearCase& c) { return {c, MakeWeight(c, 5), MakeActivation(c, 7)}; }

// Rows of `out` lie one further apart than they are long: the gap must stay as it was.
constexpr float kUntouched = -12345.0f;

std::vector<float> Multiply(LinearFunction linear, const Problem& problem, int threads) {
  const LinearCase& c = problem.shape;
  cpu::ThreadPool pool(threads);
  cpu::Workspace workspace(threads);
  cpu::OpContext context{pool, workspace};
  std::vector<float> out(static_cast<size_t>(c.m * (c.n + 1)), kUntouched);
  StatusOr<std::unique_ptr<PackedLinear>> packed = cpu::PackBf16(pool, problem.weight);
  EXPECT_TRUE(packed.ok());
  if (!packed.ok()) return out;
  const Status status = linear(
      context,
      {.weight = packed->get(), .x = problem.x.view, .out = {out.data(), c.m, c.n, c.n + 1}});
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

float Rounded(float value) { return Bf16ToFloat(cpu::RoundToBf16(value)); }

// Two chains of fused multiply-adds for each 32 columns, as bf16_panel.h says.
std::vector<float> Oracle(const Problem& problem) {
  const LinearCase& c = problem.shape;
  std::vector<float> out(static_cast<size_t>(c.m * (c.n + 1)), kUntouched);
  std::vector<float> row(static_cast<size_t>(c.k));
  for (int64_t n = 0; n < c.n; ++n) {
    DequantizeRow(problem.weight, n, row.data());
    for (float& value : row) value = Rounded(value);
    for (int64_t m = 0; m < c.m; ++m) {
      const float* x = problem.x.view.f32 + m * problem.x.view.f32_stride;
      float total = 0;
      for (int64_t first = 0; first < c.k; first += 32) {
        float even = 0, odd = 0;
        for (int64_t k = first; k < std::min(c.k, first + 32); ++k) {
          float& sum = k % 2 == 0 ? even : odd;
          sum = std::fma(Rounded(x[k]), row[static_cast<size_t>(k)], sum);
        }
        total += even + odd;
      }
      if (c.bias) total += problem.weight.bias[static_cast<size_t>(n)];
      out[static_cast<size_t>(m * (c.n + 1) + n)] = total;
    }
  }
  return out;
}

std::vector<LinearCase> Cases() {
  std::vector<LinearCase> cases;
  const auto add = [&cases](int64_t n, int64_t k, int64_t m, bool bias) {
    cases.push_back({.format = WeightFormat::kFloat, .n = n, .k = k, .m = m, .bias = bias});
  };
  for (const int64_t m : {0, 1, 2, 3, 5, 6, 7, 12, 13, 16, 17, 33, 49, 97}) add(40, 96, m, m == 7);
  for (const int64_t n : {1, 15, 16, 17, 32, 33, 65, 100}) add(n, 70, 4, true);
  for (const int64_t k : {1, 2, 31, 32, 33, 63, 255, 257, 800}) add(33, k, 19, k == 33);
  add(16, 64, 600, false);
  add(130, 288, 130, true);
  return cases;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

class Bf16Linear : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (!GetParam().present) GTEST_SKIP() << "this machine has no " << GetParam().name;
  }
};

TEST_P(Bf16Linear, EqualsTheReferenceToTheBit) {
  for (const LinearCase& c : Cases()) {
    const Problem problem = MakeProblem(c);
    const std::vector<float> expected = Oracle(problem);
    for (const int threads : {1, 3}) {
      EXPECT_TRUE(SameBits(Multiply(GetParam().linear, problem, threads), expected))
          << GetParam().name << ": " << c.Name() << " threads=" << threads;
    }
  }
}

// Numbers whose products and sums would be subnormal count as zero, and what is near that border is
// the same everywhere.
TEST_P(Bf16Linear, TinyAndHugeNumbersEqualTheReferenceToTheBit) {
  Problem problem =
      MakeProblem({.format = WeightFormat::kFloat, .n = 20, .k = 96, .m = 18, .bias = false});
  const auto spread = [](float& value, size_t i) {
    value = std::ldexp(value, static_cast<int>(i * 7 % 140) - 100);
  };
  std::vector<float> weights(problem.weight.floats.size() / sizeof(float));
  std::memcpy(weights.data(), problem.weight.floats.data(), problem.weight.floats.size());
  for (size_t i = 0; i < weights.size(); ++i) spread(weights[i], i + i / 96 * 5);
  std::memcpy(problem.weight.floats.data(), weights.data(), problem.weight.floats.size());
  for (size_t i = 0; i < problem.x.f32.size(); ++i) spread(problem.x.f32[i], i * 3);
  EXPECT_TRUE(SameBits(Multiply(GetParam().linear, problem, 2), Oracle(problem)));
}

// A token's bits do not depend on who is multiplied beside it.
TEST_P(Bf16Linear, RowsDoNotDependOnTheirNeighbours) {
  LinearCase c{.format = WeightFormat::kFloat, .n = 48, .k = 300, .m = 53};
  const std::vector<float> together = Multiply(GetParam().linear, MakeProblem(c), 2);
  for (c.m = 1; c.m < 53; c.m += 4) {
    const std::vector<float> fewer = Multiply(GetParam().linear, MakeProblem(c), 1);
    EXPECT_EQ(std::memcmp(fewer.data(), together.data(), fewer.size() * sizeof(float)), 0)
        << c.Name();
  }
}

// Each factor is off by at most 2^-9 of itself, so a product by 2^-8 and a little; sums in fp32 add
// less than 2^-15 of what they add up.
TEST_P(Bf16Linear, IsWithinWhatBf16CanHold) {
  const Problem problem =
      MakeProblem({.format = WeightFormat::kFloat, .n = 50, .k = 517, .m = 21, .bias = true});
  const LinearCase& c = problem.shape;
  const std::vector<float> got = Multiply(GetParam().linear, problem, 2);
  std::vector<float> row(static_cast<size_t>(c.k));
  for (int64_t n = 0; n < c.n; ++n) {
    DequantizeRow(problem.weight, n, row.data());
    for (int64_t m = 0; m < c.m; ++m) {
      double sum = static_cast<double>(problem.weight.bias[static_cast<size_t>(n)]);
      double magnitude = std::abs(sum);
      for (int64_t k = 0; k < c.k; ++k) {
        const double product =
            static_cast<double>(problem.x.view.f32[m * problem.x.view.f32_stride + k]) *
            static_cast<double>(row[static_cast<size_t>(k)]);
        sum += product;
        magnitude += std::abs(product);
      }
      ASSERT_NEAR(static_cast<double>(got[static_cast<size_t>(m * (c.n + 1) + n)]), sum,
                  magnitude * (0x1p-8 + 0x1p-15));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, Bf16Linear, ::testing::ValuesIn(Implementations()),
                         [](const auto& parameter) { return parameter.param.name; });

TEST(Bf16Rounding, IsToNearestEvenWithoutTinyNumbers) {
  EXPECT_EQ(Rounded(1.0f + 0x1p-8f), 1.0f);  // a tie
  EXPECT_EQ(Rounded(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(Rounded(-1.0f - 0x1.8p-8f), -1.0f - 0x1p-7f);
  EXPECT_EQ(Rounded(0x1p-56f), 0x1p-56f);
  EXPECT_EQ(Rounded(-0x1.fcp-57f), 0.0f);
  EXPECT_EQ(Rounded(1e-40f), 0.0f);
  EXPECT_EQ(Rounded(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(Rounded(std::numeric_limits<float>::quiet_NaN())));
}

// The other tiles add in one chain over all columns.
TEST(Bf16Tiles, AreUsedOnlyIfTheyKeepToTheArithmetic) {
  EXPECT_TRUE(cpu::TilesAgree(cpu::emulated::kBf16Tiles));
  cpu::TileFunctions other = cpu::emulated::kBf16Tiles;
  other.multiply[2] = [](const cpu::TileProduct& p) {
    const auto value = [](const int8_t* from, int64_t i) {
      uint16_t bits;
      std::memcpy(&bits, from + 2 * i, sizeof(bits));
      return Bf16ToFloat(bits);
    };
    for (int64_t m = 0; m < 32; ++m) {
      for (int64_t n = 0; n < 32; ++n) {
        int8_t* at = reinterpret_cast<int8_t*>(p.c + m * 32 + n);
        float sum = 0;
        if (p.add) std::memcpy(&sum, at, sizeof(sum));
        for (int64_t k = 0; k < p.steps * 32; ++k) {
          const int64_t tile = k / 32 * 512;
          sum = std::fma(
              value(p.x + m / 16 * p.x_bytes, tile + m % 16 * 32 + k % 32),
              value(p.w + n / 16 * p.w_bytes, tile + k % 32 / 2 * 32 + n % 16 * 2 + k % 2), sum);
        }
        std::memcpy(at, &sum, sizeof(sum));
      }
    }
  };
  EXPECT_FALSE(cpu::TilesAgree(other));
}

TEST(Bf16Tiles, ArePaidForByAFewTokens) {
  EXPECT_FALSE(cpu::Bf16TilesPay(1));
  EXPECT_TRUE(cpu::Bf16TilesPay(16));
}

TEST(Bf16Tiles, OfThisMachineKeepToTheArithmetic) {
  bool any = false;
  for (const cpu::OpTable* table : cpu::AllOpTables()) {
    if (table->may_use_bf16_tiles == nullptr || !table->supported()) continue;
    any = true;
    EXPECT_TRUE(table->may_use_bf16_tiles()) << table->isa;
  }
  if (!any) GTEST_SKIP() << "this machine has no tiles";
}

TEST(Bf16Backend, IsAskedForAndAnotherKernelFamily) {
  const Problem problem =
      MakeProblem({.format = WeightFormat::kFloat, .n = 33, .k = 65, .m = 5, .bias = true});
  const auto backend =
      CreateBackend({.device = "cpu", .threads = 2, .linear_type = FloatType::kBf16});
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->info().kernel_family, "cpu-bf16");
  const auto packed = (*backend)->Pack(problem.weight);
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->bytes, 64 * 96 * 2);
  std::vector<float> out(5 * 34, kUntouched);
  const LinearArgs args = {
      .weight = packed->get(), .x = problem.x.view, .out = {out.data(), 5, 33, 34}};
  EXPECT_TRUE((*backend)->Run(0, [&] { (*backend)->Linear(args); }).ok());
  EXPECT_TRUE(SameBits(out, Oracle(problem)));
  const auto half = CreateBackend({.device = "cpu", .linear_type = FloatType::kF16});
  ASSERT_FALSE(half.ok());
  EXPECT_EQ(half.status().code(), StatusCode::kUnsupported);
  EXPECT_FALSE(CreateBackend({.device = "cuda", .linear_type = FloatType::kBf16}).ok());
}

}  // namespace
}  // namespace qserve::kernels::testing
