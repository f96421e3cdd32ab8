// Every implementation of the linear operation against the reference: equal to the bit, for any
// number of threads. Instruction sets that the machine lacks are skipped by name; their algorithm
// runs all the same, with emulated instructions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/workspace.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::testing {
namespace {

using PackFunction = decltype(cpu::OpTable::pack);
using LinearFunction = decltype(cpu::OpTable::linear);

struct Implementation {
  std::string name;
  bool present = true;
  PackFunction pack = nullptr;
  LinearFunction linear = nullptr;
};

std::vector<Implementation> Implementations() {
  std::vector<Implementation> all = {
      {"emulated_8_lanes", true, cpu::PackPanels, cpu::emulated::LinearOf8Lanes},
      {"emulated_16_lanes", true, cpu::PackPanels, cpu::emulated::LinearOf16Lanes},
      {"emulated_tiles", true, cpu::PackPanels, cpu::emulated::LinearByTiles},
  };
  for (const cpu::OpTable* table : cpu::AllOpTables()) {
    all.push_back({table->isa, table->supported(), table->pack, table->linear});
    // By its own choice few tokens never meet a tile.
    if (table->linear_by_tiles != nullptr) {
      all.push_back({std::string(table->isa) + "_tiles_always", table->supported(), table->pack,
                     table->linear_by_tiles});
    }
  }
  return all;
}

// Rows of `out` lie one further apart than they are long: the gap must stay as it was.
constexpr float kUntouched = -12345.0f;

std::vector<float> Multiply(PackFunction pack, LinearFunction linear, const LinearCase& c,
                            int threads) {
  cpu::ThreadPool pool(threads);
  cpu::Workspace workspace(threads);
  cpu::OpContext context{pool, workspace};
  const HostActivation x = MakeActivation(c, 7);
  std::vector<float> out(static_cast<size_t>(c.m * (c.n + 1)), kUntouched);
  StatusOr<std::unique_ptr<PackedLinear>> packed = pack(pool, MakeWeight(c, 5));
  EXPECT_TRUE(packed.ok());
  if (!packed.ok()) return out;
  const Status status = linear(
      context, {.weight = packed->get(), .x = x.view, .out = {out.data(), c.m, c.n, c.n + 1}});
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

std::vector<float> Oracle(const LinearCase& c) {
  return Multiply(cpu::reference::PackLinear, cpu::reference::Linear, c, 1);
}

class LinearParity : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (!GetParam().present) GTEST_SKIP() << "this machine has no " << GetParam().name;
  }
};

TEST_P(LinearParity, EqualsTheReferenceToTheBit) {
  for (const LinearCase& c : LinearCases()) {
    const std::vector<float> expected = Oracle(c);
    for (const int threads : {1, 2, 3}) {
      const std::vector<float> got = Multiply(GetParam().pack, GetParam().linear, c, threads);
      ASSERT_EQ(got.size(), expected.size());
      ASSERT_TRUE(got.empty() ||
                  std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0)
          << GetParam().name << ": " << c.Name() << " threads=" << threads;
    }
  }
}

// Around the numbers of tokens where work is cut into chunks.
TEST_P(LinearParity, ManyTokensEqualTheReferenceToTheBit) {
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW8}) {
    for (const int64_t m : {31, 33, 65, 511, 513, 1025, 4096}) {
      const LinearCase c{.format = format, .n = 72, .k = 96, .m = m, .lead = 64, .bias = true};
      const std::vector<float> expected = Oracle(c);
      const std::vector<float> got = Multiply(GetParam().pack, GetParam().linear, c, 2);
      ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
          << c.Name();
    }
  }
}

// A token's bits do not depend on who is multiplied beside it: promise 1 of the design.
TEST_P(LinearParity, RowsDoNotDependOnTheirNeighbours) {
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kHalfFixedOrder}) {
    LinearCase c{.format = format, .n = 48, .k = 640, .m = 29};
    const std::vector<float> together = Multiply(GetParam().pack, GetParam().linear, c, 2);
    for (c.m = 1; c.m < 29; c.m += 5) {
      const std::vector<float> fewer = Multiply(GetParam().pack, GetParam().linear, c, 1);
      EXPECT_EQ(std::memcmp(fewer.data(), together.data(), fewer.size() * sizeof(float)), 0)
          << c.Name();
    }
  }
}

TEST_P(LinearParity, FullPrecisionIsCloseToTheReference) {
  for (const int64_t m : {0, 1, 5, 33}) {
    const LinearCase c{.format = WeightFormat::kFloat, .n = 130, .k = 257, .m = m, .bias = m == 5};
    const std::vector<float> expected = Oracle(c);
    const std::vector<float> got = Multiply(GetParam().pack, GetParam().linear, c, 3);
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], expected[i], 1e-4) << c.Name() << " at " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, LinearParity, ::testing::ValuesIn(Implementations()),
                         [](const auto& parameter) { return parameter.param.name; });

// The reference itself, against the definition in double precision.
TEST(LinearReference, IsTheProductOfDequantizedWeights) {
  for (const LinearCase& c : LinearCases()) {
    if (c.m == 0 || c.k > 2000) continue;
    const std::vector<float> got = Oracle(c);
    const LinearWeight w = MakeWeight(c, 5);
    ASSERT_TRUE(Validate(w).ok()) << Validate(w).message();
    const HostActivation x = MakeActivation(c, 7);
    std::vector<float> row(static_cast<size_t>(c.k));
    for (int64_t n = 0; n < c.n; n += 7) {
      DequantizeRow(w, n, row.data());
      for (int64_t m = 0; m < c.m; m += 3) {
        double sum = 0;
        double magnitude = 1;
        for (int64_t k = 0; k < c.k; ++k) {
          const double value =
              TakesInt8(c.format)
                  ? static_cast<double>(x.view.q[m * x.view.q_stride + c.lead + k]) *
                        static_cast<double>(x.scale[static_cast<size_t>(m)])
                  : static_cast<double>(x.view.f32[m * x.view.f32_stride + k]);
          sum += value * static_cast<double>(row[static_cast<size_t>(k)]);
          magnitude += std::abs(value * static_cast<double>(row[static_cast<size_t>(k)]));
        }
        if (c.bias) sum += static_cast<double>(w.bias[static_cast<size_t>(n)]);
        ASSERT_NEAR(static_cast<double>(got[static_cast<size_t>(m * (c.n + 1) + n)]), sum,
                    1e-6 * magnitude)
            << c.Name();
      }
    }
  }
}

}  // namespace
}  // namespace qserve::kernels::testing
