// The driver of bf16 products by tiles, cut as amx_panel.cc cuts those of int8, and the check of a
// CPU's tiles.
//
// 256 columns are multiplied at a time: those of 64 rows (32 KiB) and of 32 tokens (16 KiB) are
// together as large as the first-level cache of the CPUs that have AMX.
#include "kernels/cpu/bf16_tiles.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/cpu/amx_units.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockSteps = 8;  // 256 columns
constexpr int64_t kValueBytes = sizeof(uint16_t);
constexpr int64_t kTileValues = kTileBytes / kValueBytes;

// One token of x, or of the zeros that fill up the last tile.
void PackToken(const Bf16Linear& w, const LinearArgs& args, int64_t m, uint16_t* to) {
  const int64_t k = m < args.out.rows ? w.k : 0;
  const float* from = args.x.f32 + (k > 0 ? m * args.x.f32_stride : 0);
  for (int64_t first = 0; first < w.kp; first += kBf16Columns, to += kTileValues) {
    for (int64_t i = 0; i < kBf16Columns; ++i)
      to[i] = first + i < k ? RoundToBf16(from[first + i]) : uint16_t{0};
  }
}

// c is only ever loaded and stored by tile instructions as what it is, fp32.
TileProduct TilesAt(const uint16_t* x, int64_t x_bytes, const uint16_t* w, int64_t w_bytes,
                    int64_t steps, bool add, float* c) {
  return {.x = reinterpret_cast<const int8_t*>(x),
          .x_bytes = x_bytes,
          .w = reinterpret_cast<const int8_t*>(w),
          .w_bytes = w_bytes,
          .steps = steps,
          .add = add,
          .c = reinterpret_cast<int32_t*>(c)};
}

void MultiplyUnit(const Bf16Linear& w, const LinearArgs& args, const TileFunctions& tiles,
                  const TileUnit& unit) {
  const auto* x = reinterpret_cast<const uint16_t*>(unit.x);
  auto* c = reinterpret_cast<float*>(unit.c);
  const int64_t panel_values = w.kp * kPanelRows;
  const int64_t steps = w.kp / kBf16Columns;
  for (int64_t step = 0; step < steps; step += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - step);
    const TileProduct block =
        TilesAt(x + step * kTileValues, kTileTokens * w.kp * kValueBytes,
                w.values.as<uint16_t>() + unit.panel * panel_values + step * kBf16Tile,
                panel_values * kValueBytes, count, step > 0, c);
    MultiplyBlock(tiles, unit, block, step + count == steps,
                  [&](int64_t row, int64_t m, int64_t tokens, int32_t* sums) {
                    StoreBf16(w, args, row, kPairRows, m, tokens,
                              reinterpret_cast<const float*>(sums));
                  });
  }
}

// Tokens x rows of the check, over two calls of kCheckSteps each.
constexpr int64_t kCheckSteps = 4;
constexpr int64_t kCheckColumns = 2 * kCheckSteps * kBf16Columns;

// bf16 of either sign between 2^-12 and 2^12, from a fixed sequence.
std::vector<uint16_t> CheckValues(size_t count, uint32_t seed) {
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    seed = seed * 1664525u + 1013904223u;
    const uint32_t exponent = 127 - 12 + (seed >> 8) % 25;
    value = static_cast<uint16_t>((seed >> 16 & 0x8000u) | exponent << 7 | (seed >> 24 & 0x7fu));
  }
  return values;
}

}  // namespace

bool Bf16TilesPay(int64_t tokens) { return tokens > 2; }

Status MultiplyBf16ByTiles(OpContext& context, const LinearArgs& args, const TileFunctions& tiles) {
  const auto& w = static_cast<const Bf16Linear&>(*args.weight);
  if (args.out.rows == 0) return {};
  ForEachTileUnit(
      context, {.rows = args.out.rows, .panels = w.panels, .token_bytes = w.kp * kValueBytes},
      tiles, [&](int64_t m, int8_t* to) { PackToken(w, args, m, reinterpret_cast<uint16_t*>(to)); },
      [&](const TileUnit& unit) { MultiplyUnit(w, args, tiles, unit); });
  return {};
}

bool TilesAgree(const TileFunctions& tiles) {
  constexpr int64_t kTokens = 2 * kTileTokens;
  constexpr int64_t kXBytes = kTileTokens * kCheckColumns * kValueBytes;
  constexpr int64_t kWBytes = kPanelRows * kCheckColumns * kValueBytes;
  const std::vector<uint16_t> x = CheckValues(kTokens * kCheckColumns, 1);
  const std::vector<uint16_t> w = CheckValues(kPairRows * kCheckColumns, 2);
  std::vector<float> c(kTokens * kPairRows);
  {
    const TileScope scope(tiles);
    for (int64_t step = 0; step < 2 * kCheckSteps; step += kCheckSteps) {
      tiles.multiply[2](TilesAt(x.data() + step * kTileValues, kXBytes, w.data() + step * kBf16Tile,
                                kWBytes, kCheckSteps, step > 0, c.data()));
    }
  }
  for (int64_t m = 0; m < kTokens; ++m) {
    float row[kCheckColumns];
    for (int64_t k = 0; k < kCheckColumns; ++k) {
      const int64_t tile = m / kTileTokens * 2 * kCheckSteps + k / kBf16Columns;
      const int64_t at = tile * kTileValues + m % kTileTokens * kBf16Columns + k % kBf16Columns;
      row[k] = Bf16ToFloat(x[static_cast<size_t>(at)]);
    }
    for (int64_t panel = 0; panel < 2; ++panel) {
      float expected[kPanelRows] = {};
      reference::MultiplyBf16Panel({.x = row,
                                    .w = w.data() + panel * kPanelRows * kCheckColumns,
                                    .steps = 2 * kCheckSteps,
                                    .c = expected});
      if (std::memcmp(expected, c.data() + m * kPairRows + panel * kPanelRows, sizeof(expected)) !=
          0) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace qserve::kernels::cpu
