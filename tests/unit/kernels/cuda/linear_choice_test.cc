// The choice of a linear's kernel: legal for every shape that models have, on every kind of GPU,
// and sensible where it can be said what sense is.
#include "kernels/cuda/linear_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device/linear_format.h"
#include "kernels/cuda/device/linear_kernel.h"
#include "kernels/cuda/device/linear_shape.h"

namespace qserve::kernels::cuda {
namespace {

constexpr LinearMachine kA100 = {.multiprocessors = 108, .shared_bytes_per_block = 163 << 10};
constexpr LinearMachine kL40S = {.multiprocessors = 142, .shared_bytes_per_block = 99 << 10};
constexpr LinearMachine kH200 = {.multiprocessors = 132, .shared_bytes_per_block = 227 << 10};

constexpr WeightFormat kFormats[] = {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel,
                                     WeightFormat::kW8, WeightFormat::kHalfFixedOrder};

int TokensOf(LinearTile tile) {
  constexpr int kTokens[] = {16, 32, 64, 128, 256};
  return kTokens[static_cast<int>(tile)];
}

LinearProblem Problem(WeightFormat format, int64_t n, int64_t k, int64_t m) {
  const int64_t columns = GpuTileColumns(format);
  return {format, n, (k + columns - 1) / columns, m};
}

struct Shape {
  int64_t n = 0;
  int64_t k = 0;
};
// qkv, o, gate|up and down of Llama-3-8B and 70B, Qwen2.5-7B and 72B, slices of them, the demo
// model's, vocabularies, and ragged ones.
constexpr Shape kShapes[] = {
    {6144, 4096},   {4096, 4096},   {28672, 4096}, {4096, 14336}, {10240, 8192}, {8192, 8192},
    {57344, 8192},  {8192, 28672},  {4608, 3584},  {3584, 3584},  {37888, 3584}, {3584, 18944},
    {10240, 8192},  {59136, 8192},  {8192, 29568}, {1536, 4096},  {4096, 1024},  {8192, 7168},
    {128256, 4096}, {152064, 8192}, {256, 64},     {64, 64},      {512, 192},    {1, 1},
    {65, 129},      {8, 100000},    {300000, 32},
};

TEST(LinearChoice, IsLegalForEveryShape) {
  for (const LinearMachine& machine : {kA100, kL40S, kH200}) {
    for (const WeightFormat format : kFormats) {
      for (const Shape& shape : kShapes) {
        for (const int64_t m : {1,   2,   8,   15,  16,  17,  32,   33,   64,   65,   128, 129,
                                200, 256, 257, 300, 511, 512, 1000, 1024, 4096, 8191, 8192}) {
          const LinearProblem problem = Problem(format, shape.n, shape.k, m);
          const LinearChoice choice = ChooseLinear(machine, problem);
          ASSERT_TRUE(IsLegal(machine, format, choice.tile));
          ASSERT_LE(choice.shared_bytes, machine.shared_bytes_per_block);
          ASSERT_GE(choice.splits, 1);
          ASSERT_LE(choice.splits, problem.k_tiles);
          ASSERT_LE(choice.splits, 65535);
          ASSERT_GE(int64_t{choice.row_blocks} * kLinearRows, shape.n);
          ASSERT_LT((int64_t{choice.row_blocks} - 1) * kLinearRows, shape.n);
          ASSERT_GE(int64_t{choice.token_blocks} * TokensOf(choice.tile), m);
          ASSERT_LT((int64_t{choice.token_blocks} - 1) * TokensOf(choice.tile), m);
          ASSERT_EQ(choice.splits == 1, choice.sums_bytes == 0);
          ASSERT_LE(choice.sums_bytes, 64 << 20) << "workspace of a launch";
          if (format == WeightFormat::kHalfFixedOrder) {
            ASSERT_EQ(choice.splits, 1) << "one order of additions";
          }
        }
      }
    }
  }
}

TEST(LinearChoice, AFewTokensGetASmallTileAndManyALargeOne) {
  const auto tile = [](const LinearMachine& machine, int64_t m) {
    return ChooseLinear(machine, Problem(WeightFormat::kW4Group128, 28672, 4096, m)).tile;
  };
  for (const LinearMachine& machine : {kA100, kL40S, kH200}) {
    EXPECT_EQ(tile(machine, 1), LinearTile::kD16);
    EXPECT_EQ(tile(machine, 16), LinearTile::kD16);
    EXPECT_EQ(tile(machine, 17), LinearTile::kS32);
    EXPECT_EQ(tile(machine, 64), LinearTile::kS64);
    EXPECT_EQ(tile(machine, 65), LinearTile::kM128);
    EXPECT_EQ(tile(machine, 128), LinearTile::kM128);
  }
  EXPECT_EQ(tile(kA100, 4096), LinearTile::kL256);
  EXPECT_EQ(tile(kH200, 8192), LinearTile::kL256);
  EXPECT_EQ(tile(kL40S, 4096), LinearTile::kM128) << "99 KB do not hold the largest";
  EXPECT_EQ(tile(kA100, 300), LinearTile::kM128) << "three tiles of 128 waste less than two of 256";
}

// Weights stream through every multiprocessor: 48 KB of them under way on each, when 29 KB are the
// least that an H200's memory needs and the smallest of these weights are 60 KB a multiprocessor.
TEST(LinearChoice, DecodingKeepsWeightsUnderWay) {
  for (const LinearMachine& machine : {kA100, kH200}) {
    for (const Shape& shape : {Shape{6144, 4096}, Shape{4096, 4096}, Shape{28672, 4096},
                               Shape{4096, 14336}, Shape{57344, 8192}, Shape{8192, 28672}}) {
      const LinearProblem problem = Problem(WeightFormat::kW4Group128, shape.n, shape.k, 8);
      const LinearChoice choice = ChooseLinear(machine, problem);
      const int64_t blocks = int64_t{choice.row_blocks} * choice.splits;
      const int64_t k_tiles = problem.k_tiles / choice.splits;
      const int64_t under_way = std::min<int64_t>(k_tiles, LinearD16<false>::kStages - 1) * 8704;
      const int64_t resident = std::min<int64_t>(
          blocks, machine.multiprocessors *
                      ((machine.shared_bytes_per_block + 1024) / (choice.shared_bytes + 1024)));
      EXPECT_GE(resident * under_way, int64_t{machine.multiprocessors} * (48 << 10))
          << shape.n << " x " << shape.k;
    }
  }
}

TEST(LinearChoice, AFullMachineIsNotSplitFurther) {
  EXPECT_EQ(ChooseLinear(kA100, Problem(WeightFormat::kW4Group128, 128256, 4096, 1)).splits, 1);
  EXPECT_EQ(ChooseLinear(kA100, Problem(WeightFormat::kW4Group128, 28672, 4096, 4096)).splits, 1);
  EXPECT_GT(ChooseLinear(kA100, Problem(WeightFormat::kW4Group128, 4096, 14336, 1)).splits, 1);
  EXPECT_GT(ChooseLinear(kA100, Problem(WeightFormat::kW4Group128, 4096, 14336, 128)).splits, 1);
}

TEST(LinearChoice, TheLargestWorkspaceIsEnoughForEveryBatch) {
  for (const LinearMachine& machine : {kA100, kL40S, kH200}) {
    for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kHalfFixedOrder}) {
      GpuWeightLayout layout;
      layout.format = format;
      layout.n = 8192;
      layout.k_tiles = 224;
      const LinearWorkspace largest = LargestLinearWorkspace(machine, layout, 1000);
      LinearWorkspace needed;
      for (int64_t m = 1; m <= 1000; ++m) {
        const LinearChoice choice = ChooseLinear(machine, ProblemOf(layout, m));
        needed.sums_bytes = std::max(needed.sums_bytes, choice.sums_bytes);
        needed.scratch_bytes = std::max(needed.scratch_bytes, choice.scratch_bytes);
      }
      EXPECT_EQ(largest.sums_bytes, needed.sums_bytes);
      EXPECT_EQ(largest.scratch_bytes, needed.scratch_bytes);
    }
  }
}

// What the host computes is what the kernels are compiled with.
template <class Format, template <bool> class ShapeOf, bool kWide>
void ExpectShared(WeightFormat format, LinearTile tile) {
  const LinearChoice choice = MakeChoice(Problem(format, 128, 128, 1), tile, 1);
  EXPECT_EQ(choice.shared_bytes, (LinearKernel<Format, ShapeOf<kWide>>::kSharedBytes));
  EXPECT_EQ(TokensOf(tile), ShapeOf<kWide>::kTokens);
}
template <class Format, bool kWide>
void ExpectSharedOfAll(WeightFormat format) {
  ExpectShared<Format, LinearD16, kWide>(format, LinearTile::kD16);
  ExpectShared<Format, LinearS32, kWide>(format, LinearTile::kS32);
  ExpectShared<Format, LinearS64, kWide>(format, LinearTile::kS64);
  ExpectShared<Format, LinearM128, kWide>(format, LinearTile::kM128);
  ExpectShared<Format, LinearL256, kWide>(format, LinearTile::kL256);
}
TEST(LinearChoice, SharedMemoryIsThatOfTheKernels) {
  ExpectSharedOfAll<W4Group, false>(WeightFormat::kW4Group128);
  ExpectSharedOfAll<W4Channel, false>(WeightFormat::kW4PerChannel);
  ExpectSharedOfAll<W8, true>(WeightFormat::kW8);
  ExpectSharedOfAll<Half, true>(WeightFormat::kHalfFixedOrder);
}

TEST(LinearChoice, EverythingButTheLargestTileFitsEveryGpu) {
  for (const WeightFormat format : kFormats) {
    for (const LinearTile tile :
         {LinearTile::kD16, LinearTile::kS32, LinearTile::kS64, LinearTile::kM128})
      EXPECT_TRUE(IsLegal(kL40S, format, tile));
    EXPECT_FALSE(IsLegal(kL40S, format, LinearTile::kL256));
    EXPECT_EQ(IsLegal(kA100, format, LinearTile::kL256), format != WeightFormat::kHalfFixedOrder);
  }
  EXPECT_FALSE(IsLegal(kA100, WeightFormat::kFloat, LinearTile::kD16));
}

}  // namespace
}  // namespace qserve::kernels::cuda
