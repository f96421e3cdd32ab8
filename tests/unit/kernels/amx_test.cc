// AMX without an AMX: the pure choices, and what the driver by tiles asks of its leaf functions,
// which are wrapped to count. That products are right is tested in tests/ops.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>

#include "kernels/cpu/amx_choice.h"
#include "kernels/cpu/amx_panel.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/workspace.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::cpu {
namespace {

using testing::HostActivation;
using testing::LinearCase;

TEST(AmxChoice, TilesPayFromAFewDozenTokensAndNeverForFloatingPoint) {
  for (const int64_t tokens : {0, 1, 16, 31}) {
    EXPECT_FALSE(TilesPay(WeightFormat::kW8, tokens));
    EXPECT_FALSE(TilesPay(WeightFormat::kW4PerChannel, tokens));
    EXPECT_FALSE(TilesPay(WeightFormat::kW4Group128, tokens));
  }
  EXPECT_TRUE(TilesPay(WeightFormat::kW8, 32));
  EXPECT_TRUE(TilesPay(WeightFormat::kW4PerChannel, 32));
  EXPECT_FALSE(TilesPay(WeightFormat::kW4Group128, 64));
  EXPECT_TRUE(TilesPay(WeightFormat::kW4Group128, 65));
  EXPECT_TRUE(TilesPay(WeightFormat::kW4Group128, 4096));
  EXPECT_FALSE(TilesPay(WeightFormat::kFloat, 4096));
  EXPECT_FALSE(TilesPay(WeightFormat::kHalfFixedOrder, 4096));
}

TEST(AmxChoice, ChunksFitTheCacheAreEvenAndCoverTheBatch) {
  EXPECT_EQ(MaxChunkTokens(128), 512);
  EXPECT_EQ(MaxChunkTokens(2048), 512);
  EXPECT_EQ(MaxChunkTokens(4096), 320);
  EXPECT_EQ(MaxChunkTokens(14336), 128);
  EXPECT_EQ(ChunkTokens(1, 4096), 32);
  EXPECT_EQ(ChunkTokens(512, 2048), 512);
  EXPECT_EQ(ChunkTokens(513, 2048), 288);
  for (const int64_t columns : {128, 2048, 4096, 8192, 28672}) {
    const int64_t most = MaxChunkTokens(columns);
    for (int64_t tokens = 1; tokens <= 4096; ++tokens) {
      const int64_t chunk = ChunkTokens(tokens, columns);
      const int64_t chunks = (tokens + chunk - 1) / chunk;
      ASSERT_EQ(chunk % 32, 0);
      ASSERT_LE(chunk, most);
      ASSERT_EQ(chunks, (tokens + most - 1) / most) << tokens << " tokens in chunks of " << chunk;
    }
  }
}

TEST(AmxChoice, UnitsAreLargeWhereEveryThreadHasSomeAllTheSame) {
  EXPECT_EQ(UnitPanels(512, 1, 2), 4);
  EXPECT_EQ(UnitPanels(128, 1, 8), 4);
  EXPECT_EQ(UnitPanels(128, 1, 9), 2);
  EXPECT_EQ(UnitPanels(128, 2, 9), 4);
  EXPECT_EQ(UnitPanels(2, 1, 1), 2);
}

// The emulated leaves, watched. Tests of one binary run one after another.
std::atomic<int> configurations{0};
std::atomic<int> releases{0};
std::atomic<int> unpackings{0};
std::atomic<int> calls_without_tiles{0};
std::atomic<bool> unconfigured{false};
thread_local bool configured = false;

TileKernels WatchedKernels() {
  configurations = releases = unpackings = calls_without_tiles = 0;
  unconfigured = false;
  TileKernels k = emulated::kTileKernels;
  k.configure = [] {
    if (configured) unconfigured = true;  // twice without a release
    configured = true;
    ++configurations;
  };
  k.release = [] {
    configured = false;
    ++releases;
  };
  k.unpack_group = [](const UnpackArgs& args) {
    ++unpackings;
    emulated::kTileKernels.unpack_group(args);
  };
  k.multiply[1] = [](const TileProduct& product) {
    if (!configured) unconfigured = true;
    emulated::kTileKernels.multiply[1](product);
  };
  k.multiply[2] = [](const TileProduct& product) {
    if (!configured) unconfigured = true;
    emulated::kTileKernels.multiply[2](product);
  };
  k.without_tiles = [](OpContext& context, const LinearArgs& args) {
    ++calls_without_tiles;
    return emulated::kTileKernels.without_tiles(context, args);
  };
  return k;
}

std::vector<float> Multiply(const LinearCase& c, int threads, const TileKernels& kernels) {
  ThreadPool pool(threads);
  Workspace workspace(threads);
  OpContext context{pool, workspace};
  const HostActivation x = MakeActivation(c, 3);
  const auto packed = PackPanels(pool, MakeWeight(c, 4));
  std::vector<float> out(static_cast<size_t>(c.m * c.n));
  EXPECT_TRUE(
      LinearByChoice(context,
                     {.weight = packed->get(), .x = x.view, .out = {out.data(), c.m, c.n, c.n}},
                     kernels)
          .ok());
  return out;
}

TEST(AmxDriver, EveryThreadConfiguresItsTilesAndGivesThemBack) {
  const TileKernels kernels = WatchedKernels();
  for (const int threads : {1, 3}) {
    Multiply({.format = WeightFormat::kW4PerChannel, .n = 400, .k = 640, .m = 70}, threads,
             kernels);
    EXPECT_GE(configurations, threads);
    EXPECT_EQ(configurations, releases);
    EXPECT_FALSE(unconfigured);
    EXPECT_FALSE(configured);
  }
  EXPECT_EQ(calls_without_tiles, 0);
}

TEST(AmxDriver, UnpacksAPanelOnceForAChunkOfTokens) {
  const LinearCase c{.format = WeightFormat::kW4Group128, .n = 96, .k = 1024, .m = 512};
  const TileKernels kernels = WatchedKernels();
  Multiply(c, 1, kernels);
  EXPECT_EQ(unpackings, 96 / 16 * 2);  // panels times blocks of 512 columns
}

TEST(AmxDriver, FewTokensGoElsewhereWithTheSameBits) {
  const TileKernels kernels = WatchedKernels();
  LinearCase c{.format = WeightFormat::kW4Group128, .n = 48, .k = 384, .m = 64};
  const std::vector<float> few = Multiply(c, 1, kernels);
  EXPECT_EQ(calls_without_tiles, 1);
  EXPECT_EQ(configurations, 0);
  c.m = 65;
  const std::vector<float> more = Multiply(c, 1, kernels);
  EXPECT_EQ(calls_without_tiles, 1);
  EXPECT_GT(configurations, 0);
  c.m = 64;  // MakeActivation draws rows one after another: the first 64 are the same
  EXPECT_EQ(std::memcmp(few.data(), more.data(), few.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace qserve::kernels::cpu
