// Weights in the GPUs' fragment order: packing loses nothing, every weight has one place, and the
// places are where the lanes of both families of tensor core instructions look.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

#include "kernels/quant/gpu_weight.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels {
namespace {

using testing::LinearCase;

size_t Index(int64_t value) { return static_cast<size_t>(value); }

std::vector<uint8_t> Pack(const LinearWeight& w, const GpuWeightLayout& layout) {
  std::vector<uint8_t> buffer(Index(layout.bytes));
  // Row tiles one by one and backwards, as threads might take them.
  for (int64_t tile = layout.row_tiles - 1; tile >= 0; --tile)
    PackGpuRowTiles(w, layout, tile, tile + 1, buffer.data());
  return buffer;
}

std::vector<LinearCase> Cases() {
  std::vector<LinearCase> cases;
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel,
                                    WeightFormat::kW8, WeightFormat::kHalfFixedOrder}) {
    for (const int64_t n : {1, 63, 64, 65, 200}) {
      for (const int64_t k : {1, 96, 128, 129, 416})
        cases.push_back({.format = format, .n = n, .k = k, .bias = n % 2 == 0});
    }
    if (!TakesInt8(format)) continue;
    for (const int64_t lead : {32, 96, 127})
      cases.push_back({.format = format, .n = 70, .k = 224, .lead = lead, .bias = true});
    cases.push_back({.format = format, .n = 64, .k = 256, .extreme = true});
  }
  return cases;
}

TEST(GpuWeight, UnpackingGivesTheWeightBack) {
  for (const LinearCase& c : Cases()) {
    const LinearWeight w = testing::MakeWeight(c, 3);
    ASSERT_TRUE(Validate(w).ok()) << c.Name();
    const GpuWeightLayout layout = GpuLayoutOf(w);
    const LinearWeight back = UnpackGpuWeight(layout, Pack(w, layout).data());
    EXPECT_EQ(back.codes, w.codes) << c.Name();
    EXPECT_EQ(back.floats, w.floats) << c.Name();
    EXPECT_EQ(back.scale, w.scale) << c.Name();
    EXPECT_EQ(back.scaled_zero, w.scaled_zero) << c.Name();
    EXPECT_EQ(back.group_scale, w.group_scale) << c.Name();
    EXPECT_EQ(back.group_offset, w.group_offset) << c.Name();
    EXPECT_EQ(back.bias, w.bias) << c.Name();
    EXPECT_EQ(back.lead, w.lead);
    EXPECT_TRUE(Validate(back).ok());
  }
}

TEST(GpuWeight, SectionsAreAlignedAndDoNotOverlap) {
  for (const LinearCase& c : Cases()) {
    const GpuWeightLayout layout = GpuLayoutOf(testing::MakeWeight(c, 3));
    int64_t last = 0;
    for (const int64_t offset :
         {layout.tiles, layout.groups, layout.scale, layout.scaled_zero, layout.bias}) {
      EXPECT_EQ(offset % 256, 0);
      EXPECT_GE(offset, last);
      last = offset;
    }
    EXPECT_GE(layout.bytes, last);
    EXPECT_EQ(layout.groups, layout.row_tiles * layout.k_tiles * layout.tile_bytes);
  }
}

// Register `reg`, byte `byte` of lane t of 128: which row of the tile and which of the K step's 32
// bytes it multiplies, by the PTX ISA's figures for m16n8k32 (device/simt.h), four warps of sixteen
// rows one below the other.
struct Element {
  int row = 0;
  int byte = 0;
  bool operator<(const Element& other) const {
    return row != other.row ? row < other.row : byte < other.byte;
  }
  bool operator==(const Element& other) const = default;
};
Element OfMmaSync(int lane_of_128, int reg, int byte) {
  const int warp = lane_of_128 / 32, g = lane_of_128 % 32 / 4, c = lane_of_128 % 4;
  return {16 * warp + g + (reg % 2 == 1 ? 8 : 0), (reg >= 2 ? 16 : 0) + 4 * c + byte};
}
// The same for wgmma m64nNk32 with A in registers, by CuTe's ALayout_64x32
// ((4,8,4),(4,2,2)):((256,1,16),(64,8,1024)): offsets are row + 64 * k.
Element OfWgmma(int lane_of_128, int reg, int byte) {
  const int thread[3] = {lane_of_128 % 4, lane_of_128 / 4 % 8, lane_of_128 / 32};
  const int value = 4 * reg + byte;
  const int offset = thread[0] * 256 + thread[1] * 1 + thread[2] * 16 + value % 4 * 64 +
                     value / 4 % 2 * 8 + value / 8 * 1024;
  return {offset % 64, offset / 64};
}

TEST(GpuWeight, BothFamiliesOfInstructionsOwnTheSameElements) {
  std::set<Element> seen;
  for (int lane = 0; lane < 128; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      for (int byte = 0; byte < 4; ++byte) {
        const Element element = OfMmaSync(lane, reg, byte);
        EXPECT_EQ(element, OfWgmma(lane, reg, byte));
        EXPECT_TRUE(seen.insert(element).second) << "two lanes own an element";
      }
    }
  }
  EXPECT_EQ(seen.size(), 64u * 32u);
}

uint32_t WordAt(const std::vector<uint8_t>& buffer, int64_t offset) {
  uint32_t word = 0;
  std::memcpy(&word, buffer.data() + offset, 4);
  return word;
}

// Walks a tile of 4-bit codes as a kernel does; `visit` sees (tile row, column of the tile, code).
template <class Visit>
void WalkU4Tile(const std::vector<uint8_t>& buffer, int64_t tile, Visit visit) {
  for (int step = 0; step < 4; ++step) {
    for (int lane = 0; lane < 128; ++lane) {
      for (int j = 0; j < 2; ++j) {
        const uint32_t word =
            WordAt(buffer, tile + step / 2 * 2048 + lane * 16 + (step % 2 * 2 + j) * 4);
        const uint32_t registers[2] = {word & 0x0f0f0f0fu, word >> 4 & 0x0f0f0f0fu};
        for (int h = 0; h < 2; ++h) {
          for (int byte = 0; byte < 4; ++byte) {
            const Element element = OfMmaSync(lane, 2 * j + h, byte);
            visit(element.row, 32 * step + element.byte, registers[h] >> (8 * byte) & 0xffu);
          }
        }
      }
    }
  }
}

TEST(GpuWeight, LanesFindEveryCodeOnceWhereTheyLook) {
  const LinearCase c = {
      .format = WeightFormat::kW4PerChannel, .n = 130, .k = 300, .lead = 32, .bias = false};
  const LinearWeight w = testing::MakeWeight(c, 9);
  const GpuWeightLayout layout = GpuLayoutOf(w);
  const std::vector<uint8_t> buffer = Pack(w, layout);
  std::vector<int> visits(w.codes.size());
  for (int64_t row_tile = 0; row_tile < layout.row_tiles; ++row_tile) {
    for (int64_t k_tile = 0; k_tile < layout.k_tiles; ++k_tile) {
      WalkU4Tile(buffer, (row_tile * layout.k_tiles + k_tile) * layout.tile_bytes,
                 [&](int row, int column, uint32_t code) {
                   const int64_t n = row_tile * 64 + row, k = k_tile * 128 + column - c.lead;
                   if (n >= c.n || k < 0 || k >= c.k) return;
                   ++visits[Index(n * c.k + k)];
                   ASSERT_EQ(code, w.codes[Index(n * c.k + k)]) << n << " " << k;
                 });
    }
  }
  for (const int count : visits) ASSERT_EQ(count, 1);
}

// int8: the four words of a lane are the fragment; fp16 likewise with two values a word.
TEST(GpuWeight, WideTilesAreFragments) {
  for (const WeightFormat format : {WeightFormat::kW8, WeightFormat::kHalfFixedOrder}) {
    const LinearWeight w = testing::MakeWeight({.format = format, .n = 64, .k = 256}, 4);
    const GpuWeightLayout layout = GpuLayoutOf(w);
    const std::vector<uint8_t> buffer = Pack(w, layout);
    const bool half = format == WeightFormat::kHalfFixedOrder;
    const std::vector<uint8_t>& canonical = half ? w.floats : w.codes;
    const int64_t row_bytes = half ? 512 : 256;
    for (int64_t k_tile = 0; k_tile < layout.k_tiles; ++k_tile) {
      for (int step = 0; step < 4; ++step) {
        for (int lane = 0; lane < 128; ++lane) {
          for (int reg = 0; reg < 4; ++reg) {
            const Element first = OfMmaSync(lane, reg, 0);
            const uint32_t word = WordAt(buffer, k_tile * 8192 + step * 2048 + lane * 16 + reg * 4);
            ASSERT_EQ(word, WordAt(canonical,
                                   first.row * row_bytes + k_tile * 128 + step * 32 + first.byte));
          }
        }
      }
    }
  }
}

// Four codes multiplied at once give weight + 128 in each byte, for every scale and zero that
// Validate lets pass, in padding too.
TEST(GpuWeight, FourWeightsAtOnceAreTheWeightsPlus128) {
  for (const LinearCase& c : Cases()) {
    if (c.format != WeightFormat::kW4Group128) continue;
    LinearWeight w = testing::MakeWeight(c, 6);
    // Groups far from our quantizer's: one code, offsets that no byte could hold.
    for (int64_t k = 0; k < std::min<int64_t>(c.k, 128 - c.lead); ++k) w.codes[Index(k)] = 15;
    w.group_scale[0] = 127;
    w.group_offset[0] = -15 * 127 - 128;
    ASSERT_TRUE(Validate(w).ok());
    const GpuWeightLayout layout = GpuLayoutOf(w);
    const std::vector<uint8_t> buffer = Pack(w, layout);
    for (int64_t tile = 0; tile < layout.row_tiles * layout.k_tiles; ++tile) {
      const int64_t row_tile = tile / layout.k_tiles, group = tile % layout.k_tiles;
      for (int lane = 0; lane < 128; ++lane) {
        for (int word = 0; word < 8; ++word) {
          const uint32_t codes =
              WordAt(buffer, tile * 4096 + word / 4 * 2048 + lane * 16 + word % 4 * 4);
          for (int h = 0; h < 2; ++h) {
            const int g = lane % 32 / 4;
            const uint32_t parameters =
                WordAt(buffer, layout.groups + tile * 256 + (lane / 32 * 16 + g * 2 + h) * 4);
            const uint32_t scale = parameters & 0xffffu;
            const auto offset = static_cast<uint32_t>(static_cast<int32_t>(parameters) >> 16);
            const uint32_t bytes = (codes >> (4 * h) & 0x0f0f0f0fu) * scale + offset * 0x01010101u;
            const Element first = OfMmaSync(lane, 2 * (word % 2) + h, 0);
            const int64_t n = row_tile * 64 + first.row;
            if (n >= c.n) {
              ASSERT_EQ(bytes, 0u);
              continue;
            }
            for (int byte = 0; byte < 4; ++byte) {
              const int64_t k = group * 128 + word / 2 * 32 + first.byte + byte - c.lead;
              if (k < 0 || k >= c.k) continue;
              const size_t at = Index(n * w.groups() + group);
              const int weight =
                  w.codes[Index(n * c.k + k)] * w.group_scale[at] + w.group_offset[at];
              ASSERT_EQ(static_cast<int>(bytes >> (8 * byte) & 0xffu), weight + 128)
                  << c.Name() << " row " << n << " column " << k;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace qserve::kernels
