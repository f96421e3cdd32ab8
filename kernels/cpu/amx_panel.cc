// The driver of the linears by tiles: packs x, unpacks weights, calls the leaf functions, unit by
// unit.
//
// 512 columns are multiplied at a time: those of 64 rows (32 KiB) and of 32 tokens (16 KiB) are
// together as large as the first-level cache of the CPUs that have AMX, and each fetched tile of
// either is multiplied twice.
#include "kernels/cpu/amx_panel.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/amx_choice.h"
#include "kernels/cpu/amx_units.h"
#include "kernels/cpu/linear.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockGroups = 4;  // 512 columns; even, as UnpackArgs wants
constexpr int64_t kBlockColumns = kBlockGroups * kWeightGroup;
constexpr int64_t kUnpackedBytes = kMaxUnitPanels * kPanelRows * kBlockColumns;

// One call's constants.
struct Product {
  const PanelLinear& weight;
  const LinearArgs& args;
  const TileKernels& kernels;
};

// One token of x, or of the zeros that fill up the last tile.
void PackToken(const Product& p, int64_t m, int8_t* to) {
  const int8_t* from = m < p.args.out.rows ? p.args.x.q + m * p.args.x.q_stride : nullptr;
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

// Weights of groups [group, group + groups) of a unit as tiles, unpacked into its scratch: t.w and
// t.w_bytes of its first panel.
void PrepareWeights(const Product& p, const TileUnit& unit, int64_t group, int64_t groups,
                    TileProduct& t) {
  const PanelLinear& w = p.weight;
  if (w.format == WeightFormat::kW8) {
    t.w = w.codes.as<int8_t>() + unit.panel * w.panel_bytes + group * (w.panel_bytes / w.groups());
    t.w_bytes = w.panel_bytes;
    return;
  }
  t.w = unit.scratch;
  t.w_bytes = kPanelRows * kBlockColumns;
  for (int64_t i = 0; i < unit.panels; ++i)
    UnpackPanel(p, unit.panel + i, group, groups, unit.scratch + i * t.w_bytes);
}

void MultiplyUnit(const Product& p, const TileUnit& unit) {
  const PanelLinear& w = p.weight;
  for (int64_t group = 0; group < w.groups(); group += kBlockGroups) {
    const int64_t groups = std::min(kBlockGroups, w.groups() - group);
    TileProduct block;
    PrepareWeights(p, unit, group, groups, block);
    block.x = unit.x + group * kWeightGroup * kTileTokens;
    block.x_bytes = kTileTokens * w.kp;
    block.steps = groups * kWeightGroup / kTileColumns;
    block.add = group > 0;
    block.c = unit.c;
    MultiplyBlock(p.kernels, unit, block, group + groups == w.groups(),
                  [&](int64_t row, int64_t m, int64_t count, int32_t* c) {
                    p.kernels.epilogue(OutputOf(w, p.args, row, kPairRows, m, count, c));
                  });
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
  if (args.out.rows == 0) return {};
  const Product p = {.weight = w, .args = args, .kernels = kernels};
  ForEachTileUnit(
      context,
      {.rows = args.out.rows,
       .panels = w.panels,
       .token_bytes = w.kp,
       .scratch_bytes = kUnpackedBytes},
      kernels, [&](int64_t m, int8_t* to) { PackToken(p, m, to); },
      [&](const TileUnit& unit) { MultiplyUnit(p, unit); });
  return {};
}

}  // namespace qserve::kernels::cpu
