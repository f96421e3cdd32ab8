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

#include "kernels/cpu/amx_choice.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockSteps = 8;  // 256 columns
constexpr int64_t kMaxUnitPanels = 4;
constexpr int64_t kPairRows = 2 * kPanelRows;
constexpr int64_t kValueBytes = sizeof(uint16_t);
constexpr int64_t kTileValues = kTileBytes / kValueBytes;

// One call's constants.
struct Product {
  const Bf16Linear& weight;
  const LinearArgs& args;
  const Bf16TileKernels& kernels;
  int64_t rows;   // tokens
  int64_t chunk;  // of them, a multiple of 32
  uint16_t* x;    // packed
};

// Tile registers of the calling thread, for one unit.
class TileScope {
 public:
  explicit TileScope(const Bf16TileKernels& kernels) : kernels_(kernels) { kernels_.configure(); }
  ~TileScope() { kernels_.release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  const Bf16TileKernels& kernels_;
};

void PackToken(const Product& p, int64_t m) {
  const Bf16Linear& w = p.weight;
  uint16_t* to = p.x + m / kTileTokens * kTileTokens * w.kp + m % kTileTokens * kBf16Columns;
  const int64_t k = m < p.rows ? w.k : 0;
  const float* from = p.args.x.f32 + (k > 0 ? m * p.args.x.f32_stride : 0);
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

// All columns of the panels of one unit for tokens [m0, m1), at most a chunk. c: [pairs of
// panels][chunk][32].
void MultiplyUnit(const Product& p, int64_t panel, int64_t panels, int64_t m0, int64_t m1,
                  float* sums) {
  const Bf16Linear& w = p.weight;
  const TileScope scope(p.kernels);
  const int64_t panel_values = w.kp * kPanelRows;
  const int64_t steps = w.kp / kBf16Columns;
  for (int64_t step = 0; step < steps; step += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - step);
    for (int64_t m = m0; m < m1; m += 2 * kTileTokens) {
      const int64_t tokens = std::min(2 * kTileTokens, m1 - m);
      for (int64_t i = 0; i < panels; i += 2) {
        float* c = sums + (i / 2 * p.chunk + m - m0) * kPairRows;
        p.kernels.multiply[tokens > kTileTokens ? 2 : 1](
            TilesAt(p.x + m * w.kp + step * kTileValues, kTileTokens * w.kp * kValueBytes,
                    w.values.as<uint16_t>() + (panel + i) * panel_values + step * kBf16Tile,
                    panel_values * kValueBytes, count, step > 0, c));
        if (step + count < steps) continue;
        StoreBf16(w, p.args, (panel + i) * kPanelRows, kPairRows, m, tokens, c);
      }
    }
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

Status MultiplyBf16ByTiles(OpContext& context, const LinearArgs& args,
                           const Bf16TileKernels& kernels) {
  const auto& w = static_cast<const Bf16Linear&>(*args.weight);
  const int64_t rows = args.out.rows;
  if (rows == 0) return {};
  const int64_t row_bytes = w.kp * kValueBytes;
  const int64_t padded_rows = (rows + kTileTokens - 1) / kTileTokens * kTileTokens;
  const Product p = {.weight = w,
                     .args = args,
                     .kernels = kernels,
                     .rows = rows,
                     .chunk = ChunkTokens(rows, row_bytes),
                     .x = static_cast<uint16_t*>(
                         context.workspace.Shared(static_cast<size_t>(padded_rows * row_bytes)))};
  context.pool.ParallelFor(padded_rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) PackToken(p, m);
  });
  const int64_t chunks = (rows + p.chunk - 1) / p.chunk;
  const int64_t unit_panels = UnitPanels(w.panels, chunks, context.pool.size());
  const int64_t units = (w.panels + unit_panels - 1) / unit_panels;
  // As much as any batch of this weight takes, so that a smaller one later allocates nothing.
  const int64_t c_bytes = kMaxUnitPanels * kPanelRows * MaxChunkTokens(row_bytes) * 4;
  ForEachUnit(context.pool, units, chunks, [&](int64_t unit, int64_t chunk, int thread) {
    auto* c =
        static_cast<float*>(context.workspace.PerThread(thread, static_cast<size_t>(c_bytes)));
    const int64_t panel = unit * unit_panels;
    const int64_t m = chunk * p.chunk;
    MultiplyUnit(p, panel, std::min(unit_panels, w.panels - panel), m, std::min(rows, m + p.chunk),
                 c);
  });
  return {};
}

bool TilesAgree(const Bf16TileKernels& kernels) {
  constexpr int64_t kTokens = 2 * kTileTokens;
  constexpr int64_t kXBytes = kTileTokens * kCheckColumns * kValueBytes;
  constexpr int64_t kWBytes = kPanelRows * kCheckColumns * kValueBytes;
  const std::vector<uint16_t> x = CheckValues(kTokens * kCheckColumns, 1);
  const std::vector<uint16_t> w = CheckValues(kPairRows * kCheckColumns, 2);
  std::vector<float> c(kTokens * kPairRows);
  {
    const TileScope scope(kernels);
    for (int64_t step = 0; step < 2 * kCheckSteps; step += kCheckSteps) {
      kernels.multiply[2](TilesAt(x.data() + step * kTileValues, kXBytes,
                                  w.data() + step * kBf16Tile, kWBytes, kCheckSteps, step > 0,
                                  c.data()));
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
