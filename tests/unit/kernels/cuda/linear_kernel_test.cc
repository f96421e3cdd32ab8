// The GPU's linears on the emulated GPU against the plain reference: outputs equal to the bit, for
// every shape of block, every split of K and every order of blocks and threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/workspace.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/linear.h"
#include "kernels/quant/half.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::cuda {
namespace {

using testing::HostActivation;
using testing::LinearCase;

constexpr LinearTile kTiles[] = {LinearTile::kD16, LinearTile::kS32, LinearTile::kS64,
                                 LinearTile::kM128, LinearTile::kL256};
constexpr LinearMachine kLargeMachine = {.multiprocessors = 108,
                                         .shared_bytes_per_block = 163 << 10};
constexpr uint8_t kUntouched = 0xa5;

size_t Index(int64_t value) { return static_cast<size_t>(value); }

// Memory as the backend gives it: aligned to 256 bytes, and exactly as long as asked for.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t bytes, uint8_t fill = 0)
      : memory_(static_cast<uint8_t*>(
            ::operator new(Index(std::max<int64_t>(bytes, 1)), std::align_val_t{256}))),
        bytes_(bytes) {
    std::memset(memory_, fill, Index(bytes));
  }
  ~DeviceBytes() { ::operator delete(memory_, std::align_val_t{256}); }
  DeviceBytes(const DeviceBytes&) = delete;
  uint8_t* data() const { return memory_; }
  bool AllAre(uint8_t byte) const {
    return std::all_of(memory_, memory_ + bytes_, [byte](uint8_t b) { return b == byte; });
  }

 private:
  uint8_t* memory_;
  int64_t bytes_;
};

struct Attempt {
  LinearChoice choice;
  FloatType out_type = FloatType::kF32;
  int64_t out_stride = 0;
  uint64_t order_seed = 0;
  emulator::Counters counters;
};

// Output rows with the gaps between them, as bytes.
std::vector<uint8_t> OnGpu(const LinearCase& c, Attempt& run) {
  const LinearWeight w = testing::MakeWeight(c, 5);
  const GpuWeightLayout layout = GpuLayoutOf(w);
  const DeviceBytes weight(layout.bytes);
  PackGpuRowTiles(w, layout, 0, layout.row_tiles, weight.data());
  const HostActivation x = testing::MakeActivation(c, 7);
  const DeviceBytes sums(run.choice.sums_bytes), scratch(run.choice.scratch_bytes, 0xff);
  const DeviceBytes codes(c.m * x.view.q_stride);
  const int64_t out_bytes = c.m * run.out_stride * BytesOf(run.out_type);
  const DeviceBytes out(out_bytes, kUntouched);
  LinearLaunch launch = {.layout = layout,
                         .weight = weight.data(),
                         .x = x.view,
                         .out = {out.data(), run.out_type, c.m, c.n, run.out_stride},
                         .choice = run.choice,
                         .sums = sums.data(),
                         .scratch = scratch.data()};
  if (x.view.q != nullptr) {
    std::memcpy(codes.data(), x.view.q, Index(c.m * x.view.q_stride));
    launch.x.q = reinterpret_cast<int8_t*>(codes.data());
  }
  emulator::Stream stream(run.order_seed);
  EXPECT_EQ(LaunchLinear(&stream, launch), 0);
  stream.Synchronize();
  EXPECT_TRUE(sums.AllAre(0)) << "the next launch needs zeros: " << c.Name();
  run.counters = stream.counters();
  return {out.data(), out.data() + out_bytes};
}

std::vector<float> Reference(const LinearCase& c) {
  cpu::ThreadPool pool(1);
  cpu::Workspace workspace(1);
  cpu::OpContext context{pool, workspace};
  const HostActivation x = testing::MakeActivation(c, 7);
  std::vector<float> out(Index(c.m * c.n));
  auto packed = cpu::reference::PackLinear(pool, testing::MakeWeight(c, 5));
  EXPECT_TRUE(packed.ok());
  const LinearArgs args = {
      .weight = packed->get(), .x = x.view, .out = {out.data(), c.m, c.n, c.n}};
  EXPECT_TRUE(cpu::reference::Linear(context, args).ok());
  return out;
}

// What `run` must leave in memory: the reference, rounded once, and gaps as they were.
std::vector<uint8_t> Expected(const LinearCase& c, const Attempt& run,
                              const std::vector<float>& reference) {
  const int64_t size = BytesOf(run.out_type);
  std::vector<uint8_t> bytes(Index(c.m * run.out_stride * size), kUntouched);
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t n = 0; n < c.n; ++n) {
      const float value = reference[Index(m * c.n + n)];
      const uint16_t narrow =
          run.out_type == FloatType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
      uint8_t* to = bytes.data() + (m * run.out_stride + n) * size;
      if (size == 4) {
        std::memcpy(to, &value, 4);
      } else {
        std::memcpy(to, &narrow, 2);
      }
    }
  }
  return bytes;
}

void ExpectEqual(const LinearCase& c, LinearTile tile, int splits, FloatType type, int64_t stride,
                 uint64_t seed, const std::vector<float>& reference) {
  const GpuWeightLayout layout = GpuLayoutOf(testing::MakeWeight(c, 5));
  Attempt run = {.choice = MakeChoice(ProblemOf(layout, c.m), tile, splits),
                 .out_type = type,
                 .out_stride = stride,
                 .order_seed = seed};
  const std::vector<uint8_t> got = OnGpu(c, run);
  ASSERT_EQ(got, Expected(c, run, reference))
      << c.Name() << " tile " << static_cast<int>(tile) << " splits " << splits << " type "
      << static_cast<int>(type) << " stride " << stride << " seed " << seed;
  EXPECT_EQ(run.counters.load_matrix_conflicts, 0);
}

class LinearFormats : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(LinearFormats, EveryTileAndSplitEqualsTheReference) {
  uint64_t seed = 0;
  for (LinearCase c : {LinearCase{.n = 72, .k = 640, .m = 5, .lead = 0, .bias = true},
                       LinearCase{.n = 200, .k = 416, .m = 70, .lead = 96, .bias = false},
                       LinearCase{.n = 130, .k = 1000, .m = 17, .lead = 0, .bias = true}}) {
    c.format = GetParam();
    const std::vector<float> reference = Reference(c);
    const int64_t k_tiles = GpuLayoutOf(testing::MakeWeight(c, 5)).k_tiles;
    for (const LinearTile tile : kTiles) {
      for (const int splits : {1, 2, static_cast<int>(k_tiles)})
        ExpectEqual(c, tile, splits, FloatType::kF32, c.n, seed++, reference);
    }
  }
}

TEST_P(LinearFormats, RowsAreRoundedOnceAndGapsAreLeftAlone) {
  LinearCase c = {.format = GetParam(), .n = 0, .k = 256, .m = 19, .bias = true};
  for (const int64_t n : {1, 64, 66, 132}) {
    c.n = n;
    const std::vector<float> reference = Reference(c);
    for (const FloatType type : {FloatType::kF32, FloatType::kF16, FloatType::kBf16}) {
      for (const int64_t gap : {0, 1, 4})
        ExpectEqual(c, LinearTile::kS32, 1, type, n + gap, 3, reference);
    }
  }
}

TEST_P(LinearFormats, EndsOfTheRangesDoNotOverflow) {
  LinearCase c = {.format = GetParam(), .n = 34, .k = 14336, .m = 3, .extreme = true};
  ExpectEqual(c, LinearTile::kD16, 7, FloatType::kF32, c.n, 1, Reference(c));
}

// Several blocks of tokens and channels, in groups and beyond one.
TEST_P(LinearFormats, ManyBlocksCoverTheProduct) {
  LinearCase c = {.format = GetParam(), .n = 300, .k = 128, .m = 150};
  const std::vector<float> reference = Reference(c);
  for (const uint64_t seed : {0u, 1u, 2u})
    ExpectEqual(c, LinearTile::kD16, 1, FloatType::kF32, c.n, seed, reference);
  c = {.format = GetParam(), .n = 140, .k = 300, .m = 300};
  ExpectEqual(c, LinearTile::kL256, 1, FloatType::kBf16, c.n, 1, Reference(c));
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearFormats,
                         ::testing::Values(WeightFormat::kW4Group128, WeightFormat::kW4PerChannel,
                                           WeightFormat::kW8),
                         [](const auto& tested) { return testing::FormatName(tested.param); });

// fp32 sums of the fp16 head: near the exact ones, and the same bits whatever the tile and the
// batch.
TEST(LinearHalf, IsNearAndAlwaysTheSame) {
  for (LinearCase c : {LinearCase{.n = 72, .k = 160, .m = 40, .bias = true},
                       LinearCase{.n = 130, .k = 333, .m = 40}}) {
    c.format = WeightFormat::kHalfFixedOrder;
    const LinearWeight w = testing::MakeWeight(c, 5);
    const HostActivation x = testing::MakeActivation(c, 7);
    std::vector<uint8_t> first;
    for (const LinearTile tile :
         {LinearTile::kD16, LinearTile::kS32, LinearTile::kS64, LinearTile::kM128}) {
      Attempt run = {.choice = MakeChoice(ProblemOf(GpuLayoutOf(w), c.m), tile, 1),
                     .out_stride = c.n,
                     .order_seed = 2};
      const std::vector<uint8_t> got = OnGpu(c, run);
      if (first.empty()) first = got;
      EXPECT_EQ(got, first) << "tile " << static_cast<int>(tile);
      EXPECT_GT(run.counters.mma_f16, 0);
      EXPECT_EQ(run.counters.load_matrix_conflicts, 0);
    }
    LinearCase fewer = c;
    fewer.m = 3;
    Attempt run = {.choice = MakeChoice(ProblemOf(GpuLayoutOf(w), 3), LinearTile::kD16, 1),
                   .out_stride = c.n};
    const std::vector<uint8_t> few = OnGpu(fewer, run);
    EXPECT_TRUE(std::equal(few.begin(), few.end(), first.begin())) << "rows of a smaller batch";

    std::vector<float> row(Index(c.k));
    for (int64_t n = 0; n < c.n; ++n) {
      DequantizeRow(w, n, row.data());
      for (int64_t m = 0; m < c.m; ++m) {
        double exact = w.bias.empty() ? 0 : static_cast<double>(w.bias[Index(n)]), size = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double product =
              static_cast<double>(row[Index(k)]) *
              static_cast<double>(RoundToHalf(x.view.f32[m * x.view.f32_stride + k]));
          exact += product;
          size += std::abs(product);
        }
        float value = 0;
        std::memcpy(&value, first.data() + (m * c.n + n) * 4, 4);
        ASSERT_NEAR(static_cast<double>(value), exact, 1e-6 * (size + 1)) << m << " " << n;
      }
    }
  }
}

// The kernel that is chosen, end to end.
TEST(LinearChosen, EqualsTheReference) {
  for (const int64_t m : {1, 16, 33, 65, 129}) {
    const LinearCase c = {.format = WeightFormat::kW4Group128, .n = 192, .k = 1152, .m = m};
    const LinearProblem problem = ProblemOf(GpuLayoutOf(testing::MakeWeight(c, 5)), m);
    const LinearChoice choice = ChooseLinear(kLargeMachine, problem);
    ExpectEqual(c, choice.tile, choice.splits, FloatType::kF16, c.n, 4, Reference(c));
  }
}

}  // namespace
}  // namespace qserve::kernels::cuda
