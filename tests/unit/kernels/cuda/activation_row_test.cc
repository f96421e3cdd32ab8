// Rows of activations as kernels write them: bits of the plain quantizer, whatever the columns, the
// lead and the order of threads.
#include "kernels/cuda/device/activation_row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/activation_reference.h"
#include "kernels/cuda/device/kernel.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::cuda {
namespace {

using ::qserve::kernels::testing::Output;
using ::qserve::kernels::testing::RandomFloats;

constexpr int kRows = 5;

// One block writes all rows in turn, so that scratch and values are used again.
template <int kBlockThreads>
struct CopyRows {
  struct Params {
    const float* in = nullptr;
    Activation out;
  };
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;
  static void Run(const Params& p) {
    auto* scratch = reinterpret_cast<float*>(SharedMemory());
    float* values = scratch + kActivationRowScratch;
    const int cols = static_cast<int>(p.out.cols);
    for (int row = 0; row < kRows; ++row) {
      for (int c = ThreadId(); c < cols; c += kThreads) values[c] = p.in[row * cols + c];
      WriteActivationRow<kThreads>(p.out, row, values, scratch);
    }
  }
};

template <int kBlockThreads>
void ExpectRows(const std::vector<float>& in, int64_t cols, bool floats, bool codes, int64_t lead) {
  Output expected(kRows, cols, floats, codes, lead);
  for (int64_t r = 0; r < kRows; ++r) {
    cpu::reference::WriteRow(expected.view, r, in.data() + r * cols);
  }
  for (const uint64_t seed : {0u, 1u, 2u}) {
    Output actual(kRows, cols, floats, codes, lead);
    emulator::Stream stream(seed);
    using Kernel = CopyRows<kBlockThreads>;
    const int64_t shared = 4 * (kActivationRowScratch + cols);
    ASSERT_EQ(Launch<Kernel>(&stream, {}, shared, {in.data(), actual.view}), 0);
    stream.Synchronize();
    EXPECT_TRUE(actual == expected) << cols << " columns, lead " << lead << ", seed " << seed;
  }
}

std::vector<float> RaggedRows(int64_t cols) {
  std::vector<float> in = RandomFloats(kRows * cols, static_cast<uint64_t>(cols), 3.0f);
  std::fill_n(in.begin() + cols, cols, 0.0f);           // zeros
  std::fill_n(in.begin() + 2 * cols, cols, 0x1p-120f);  // so small that they count as zero
  for (int64_t c = 0; c < cols; ++c) {                  // ties between codes
    in[static_cast<size_t>(3 * cols + c)] = static_cast<float>(c % 254 - 127) + 0.5f;
  }
  in[static_cast<size_t>(3 * cols)] = -127.0f;
  return in;
}

TEST(ActivationRow, HasTheBitsOfThePlainQuantizer) {
  for (const int64_t cols : {1, 3, 128, 130, 257, 700}) {
    const std::vector<float> in = RaggedRows(cols);
    for (const int64_t lead : {0, 32, 3}) ExpectRows<128>(in, cols, cols % 2 == 0, true, lead);
    ExpectRows<128>(in, cols, true, false, 0);
  }
  ExpectRows<32>(RaggedRows(515), 515, true, true, 96);
  ExpectRows<1024>(RaggedRows(1030), 1030, false, true, 64);
}

TEST(ActivationRow, KeepsNanInTheScale) {
  std::vector<float> in = RandomFloats(kRows * 100, 1);
  in[250] = NAN;
  in[350] = -INFINITY;
  Output expected(kRows, 100, true, true), actual(kRows, 100, true, true);
  for (int64_t r = 0; r < kRows; ++r) {
    cpu::reference::WriteRow(expected.view, r, in.data() + r * 100);
  }
  emulator::Stream stream;
  Launch<CopyRows<64>>(&stream, {}, 4 * (kActivationRowScratch + 100), {in.data(), actual.view});
  stream.Synchronize();
  EXPECT_TRUE(std::isnan(actual.scale[2]));
  EXPECT_EQ(actual.row_sum, expected.row_sum);
  const auto bytes = static_cast<ptrdiff_t>(kRows * actual.view.q_stride);
  EXPECT_TRUE(std::equal(actual.view.q, actual.view.q + bytes, expected.view.q));
}

}  // namespace
}  // namespace qserve::kernels::cuda
