// What the drivers by tiles share, int8's (amx_panel.cc) and bf16's (bf16_tiles.cc): a product is
// cut into units, each of a few panels and a chunk of tokens, and a unit's columns into blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/amx_choice.h"
#include "kernels/cpu/amx_panel.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {

inline constexpr int64_t kMaxUnitPanels = 4;
inline constexpr int64_t kPairRows = 2 * kPanelRows;

// Tile registers of the calling thread.
class TileScope {
 public:
  explicit TileScope(const TileFunctions& tiles) : tiles_(tiles) { tiles_.configure(); }
  ~TileScope() { tiles_.release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  const TileFunctions& tiles_;
};

struct TileShape {
  int64_t rows = 0;           // tokens, at least one
  int64_t panels = 0;         // even
  int64_t token_bytes = 0;    // of packed x, for all columns
  int64_t scratch_bytes = 0;  // that a unit wants besides its sums, a multiple of 64
};

// One unit: panels [panel, panel + panels), at most kMaxUnitPanels, tokens [m0, m1), at most
// `chunk`.
struct TileUnit {
  int64_t panel = 0;
  int64_t panels = 0;
  int64_t m0 = 0;
  int64_t m1 = 0;
  int64_t chunk = 0;
  const int8_t* x = nullptr;  // packed, from token m0
  int8_t* scratch = nullptr;
  int32_t* c = nullptr;  // [pairs of panels][chunk][32]
};

// Packs x by pack(m, to) for every token up to the last whole tile, `to` being the place of its
// first 64 bytes, then multiplies by multiply(unit), whose thread has its tile registers.
// Executor's thread; both run on the pool's.
template <class Pack, class Multiply>
void ForEachTileUnit(OpContext& context, const TileShape& shape, const TileFunctions& tiles,
                     const Pack& pack, const Multiply& multiply) {
  const int64_t padded_rows = (shape.rows + kTileTokens - 1) / kTileTokens * kTileTokens;
  auto* const x = static_cast<int8_t*>(
      context.workspace.Shared(static_cast<size_t>(padded_rows * shape.token_bytes)));
  context.pool.ParallelFor(padded_rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t in_tile = m % kTileTokens;
      pack(m, x + (m - in_tile) * shape.token_bytes + in_tile * kTileColumns);
    }
  });
  const int64_t chunk = ChunkTokens(shape.rows, shape.token_bytes);
  const int64_t chunks = (shape.rows + chunk - 1) / chunk;
  const int64_t unit_panels = UnitPanels(shape.panels, chunks, context.pool.size());
  const int64_t units = (shape.panels + unit_panels - 1) / unit_panels;
  // As much as any batch of this weight takes, so that a smaller one later allocates nothing.
  const int64_t c_bytes = kMaxUnitPanels * kPanelRows * MaxChunkTokens(shape.token_bytes) * 4;
  ForEachUnit(context.pool, units, chunks, [&](int64_t unit, int64_t part, int thread) {
    auto* const memory = static_cast<int8_t*>(
        context.workspace.PerThread(thread, static_cast<size_t>(shape.scratch_bytes + c_bytes)));
    const int64_t panel = unit * unit_panels;
    const int64_t m = part * chunk;
    const TileScope scope(tiles);
    multiply(TileUnit{.panel = panel,
                      .panels = std::min(unit_panels, shape.panels - panel),
                      .m0 = m,
                      .m1 = std::min(shape.rows, m + chunk),
                      .chunk = chunk,
                      .x = x + m * shape.token_bytes,
                      .scratch = memory,
                      .c = reinterpret_cast<int32_t*>(memory + shape.scratch_bytes)});
  });
}

// One block of a unit's columns: `block` is the product of its first tokens and panels. With
// `last`, finish(row, m, count, c) for `count` tokens from m and 32 rows from `row` as soon as
// their sums are complete.
template <class Finish>
void MultiplyBlock(const TileFunctions& tiles, const TileUnit& unit, const TileProduct& block,
                   bool last, const Finish& finish) {
  for (int64_t m = unit.m0; m < unit.m1; m += 2 * kTileTokens) {
    const int64_t count = std::min(2 * kTileTokens, unit.m1 - m);
    for (int64_t i = 0; i < unit.panels; i += 2) {
      TileProduct t = block;
      t.x += (m - unit.m0) / kTileTokens * t.x_bytes;
      t.w += i * t.w_bytes;
      t.c += (i / 2 * unit.chunk + m - unit.m0) * kPairRows;
      tiles.multiply[count > kTileTokens ? 2 : 1](t);
      if (last) finish((unit.panel + i) * kPanelRows, m, count, t.c);
    }
  }
}

}  // namespace qserve::kernels::cpu
