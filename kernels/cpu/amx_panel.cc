// The driver of the linears by tiles: packs x, cuts the product into units of rows and chunks of
// tokens, calls the leaf functions.
//
// 512 columns are multiplied at a time: those of 64 rows (32 KiB) and of 32 tokens (16 KiB) are
// together as large as the first-level cache of the CPUs that have AMX, and each fetched tile of
// either is multiplied twice.
#include "kernels/cpu/amx_panel.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/amx_choice.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockGroups = 4;  // 512 columns; even, as UnpackArgs wants
constexpr int64_t kBlockColumns = kBlockGroups * kWeightGroup;
constexpr int64_t kMaxUnitPanels = 4;
constexpr int64_t kPairRows = 2 * kPanelRows;

// One call's constants.
struct Product {
  const PanelLinear& weight;
  const LinearArgs& args;
  const TileKernels& kernels;
  int64_t rows;   // tokens
  int64_t chunk;  // of them, a multiple of 32
  int8_t* x;      // packed
};

// Tile registers of the calling thread, for one unit.
class TileScope {
 public:
  explicit TileScope(const TileKernels& kernels) : kernels_(kernels) { kernels_.configure(); }
  ~TileScope() { kernels_.release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  const TileKernels& kernels_;
};

// One unit's scratch: 512 columns of unpacked weights, then the sums of a chunk.
struct Scratch {
  int8_t* weights;
  int32_t* c;  // [pairs of panels][chunk][32]
};

void PackToken(const Product& p, int64_t m) {
  int8_t* to = p.x + m / kTileTokens * kTileTokens * p.weight.kp + m % kTileTokens * kTileColumns;
  const int8_t* from = m < p.rows ? p.args.x.q + m * p.args.x.q_stride : nullptr;
  for (int64_t k = 0; k < p.weight.kp; k += kTileColumns, to += kTileBytes) {
    if (from == nullptr) {
      std::memset(to, 0, kTileColumns);
    } else {
      std::memcpy(to, from + k, kTileColumns);
    }
  }
}

void UnpackPanel(const Product& p, int64_t panel, int64_t group, int64_t groups, int8_t* to) {
  const PanelLinear& w = p.weight;
  UnpackArgs u;
  u.codes = w.codes.as<uint8_t>() + panel * w.panel_bytes + group * (w.panel_bytes / w.groups());
  u.groups = groups;
  u.to = to;
  if (w.format == WeightFormat::kW4PerChannel) {
    p.kernels.unpack_channel(u);
    return;
  }
  u.scales = w.scales.as<uint8_t>() + (panel * w.groups() + group) * kPanelRows;
  u.offsets = w.offsets.as<int16_t>() + (panel * w.group_pairs() + group / 2) * kPanelRows * 2;
  p.kernels.unpack_group(u);
}

// Weights of groups [group, group + groups) of a unit as tiles: t.w and t.w_bytes of its first
// panel.
void PrepareWeights(const Product& p, int64_t panel, int64_t panels, int64_t group, int64_t groups,
                    const Scratch& scratch, TileProduct& t) {
  const PanelLinear& w = p.weight;
  if (w.format == WeightFormat::kW8) {
    t.w = w.codes.as<int8_t>() + panel * w.panel_bytes + group * (w.panel_bytes / w.groups());
    t.w_bytes = w.panel_bytes;
    return;
  }
  t.w = scratch.weights;
  t.w_bytes = kPanelRows * kBlockColumns;
  for (int64_t i = 0; i < panels; ++i)
    UnpackPanel(p, panel + i, group, groups, scratch.weights + i * t.w_bytes);
}

// All columns of the panels of one unit for tokens [m0, m1), at most a chunk.
void MultiplyUnit(const Product& p, int64_t panel, int64_t panels, int64_t m0, int64_t m1,
                  const Scratch& scratch) {
  const PanelLinear& w = p.weight;
  const TileScope scope(p.kernels);
  for (int64_t group = 0; group < w.groups(); group += kBlockGroups) {
    const int64_t groups = std::min(kBlockGroups, w.groups() - group);
    const bool last = group + groups == w.groups();
    TileProduct block;
    PrepareWeights(p, panel, panels, group, groups, scratch, block);
    block.x_bytes = kTileTokens * w.kp;
    block.steps = groups * kWeightGroup / kTileColumns;
    block.add = group > 0;
    for (int64_t m = m0; m < m1; m += 2 * kTileTokens) {
      const int64_t count = std::min(2 * kTileTokens, m1 - m);
      for (int64_t i = 0; i < panels; i += 2) {
        TileProduct t = block;
        t.x = p.x + m * w.kp + group * kWeightGroup * kTileTokens;
        t.w = block.w + i * block.w_bytes;
        t.c = scratch.c + (i / 2 * p.chunk + m - m0) * kPairRows;
        p.kernels.multiply[count > kTileTokens ? 2 : 1](t);
        if (!last) continue;
        const int64_t row = (panel + i) * kPanelRows;
        p.kernels.epilogue(OutputOf(w, p.args, row, kPairRows, m, count, t.c));
      }
    }
  }
}

}  // namespace

Status LinearByChoice(OpContext& context, const LinearArgs& args, const TileKernels& kernels) {
  if (!TilesPay(args.weight->format, args.out.rows)) return kernels.without_tiles(context, args);
  return LinearTiles(context, args, kernels);
}

Status LinearTiles(OpContext& context, const LinearArgs& args, const TileKernels& kernels) {
  if (!TakesInt8(args.weight->format)) return kernels.without_tiles(context, args);
  const auto& w = static_cast<const PanelLinear&>(*args.weight);
  const int64_t rows = args.out.rows;
  if (rows == 0) return {};
  const int64_t padded_rows = (rows + kTileTokens - 1) / kTileTokens * kTileTokens;
  const Product p = {
      .weight = w,
      .args = args,
      .kernels = kernels,
      .rows = rows,
      .chunk = ChunkTokens(rows, w.kp),
      .x = static_cast<int8_t*>(context.workspace.Shared(static_cast<size_t>(padded_rows * w.kp)))};
  context.pool.ParallelFor(padded_rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) PackToken(p, m);
  });
  const int64_t chunks = (rows + p.chunk - 1) / p.chunk;
  const int64_t unit_panels = UnitPanels(w.panels, chunks, context.pool.size());
  const int64_t units = (w.panels + unit_panels - 1) / unit_panels;
  // As much as any batch of this weight takes, so that a smaller one later allocates nothing.
  constexpr int64_t kWeightBytes = kMaxUnitPanels * kPanelRows * kBlockColumns;
  const int64_t c_bytes = kMaxUnitPanels * kPanelRows * MaxChunkTokens(w.kp) * 4;
  ForEachUnit(context.pool, units, chunks, [&](int64_t unit, int64_t chunk, int thread) {
    auto* memory = static_cast<int8_t*>(
        context.workspace.PerThread(thread, static_cast<size_t>(kWeightBytes + c_bytes)));
    const Scratch scratch = {.weights = memory,
                             .c = reinterpret_cast<int32_t*>(memory + kWeightBytes)};
    const int64_t panel = unit * unit_panels;
    const int64_t m = chunk * p.chunk;
    MultiplyUnit(p, panel, std::min(unit_panels, w.panels - panel), m, std::min(rows, m + p.chunk),
                 scratch);
  });
  return {};
}

}  // namespace qserve::kernels::cpu
