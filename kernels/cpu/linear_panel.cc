// The driver of the fast linears: packs x, cuts the product into units of rows and blocks of
// tokens, calls the leaf functions.
//
// A unit's codes are streamed once for a whole block of tokens: 1024 columns of a panel (8 KiB)
// stay in the first-level cache while the block's tiles pass over them, so that small batches cost
// one pass over the weights, and large ones are bound by arithmetic.
#include "kernels/cpu/linear_panel.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_float.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockTokens = 96;                  // a multiple of every tile size
constexpr int64_t kBlockGroups = 8;                   // 1024 columns
constexpr int64_t kExpandedBytes = int64_t{8} << 10;  // of a panel, beside a tile's x in the cache
constexpr int64_t kHalfBlockTokens = 32;  // fp32 tokens that share one reading of an fp16 panel

// One call's constants.
struct Product {
  const PanelLinear& weight;
  const LinearArgs& args;
  const PanelKernels& kernels;
  const TileFunction* first_tile;  // of a block of tokens, by number of tokens
  const TileFunction* tiles;       // the others
  int64_t tile_tokens;
  const Expanded* expanded;  // null: codes are taken apart by every tile
  int64_t rows;              // tokens
  int64_t code_bytes;        // of x
  int64_t block_groups;      // multiplied at a time
  int8_t* x;                 // packed
  int16_t* x_sums;           // [rows][group pairs][2], kW4Group128
};

// The way of a product of `rows` tokens if it has more than a tile, else null.
const Expanded* ExpandedWay(const PanelKernels& kernels, WeightFormat format, int64_t rows) {
  const Expanded& way = format == WeightFormat::kW8           ? kernels.expanded_w8
                        : format == WeightFormat::kW4Group128 ? kernels.expanded_w4_group
                                                              : kernels.expanded_w4_channel;
  return way.tokens > 0 && rows > way.more_than ? &way : nullptr;
}

// Where the packed x of the tile from token m begins, for the block of columns from k. Tiles that
// are multiplied one after another lie so.
int64_t TileOffset(const Product& p, int64_t m, int64_t k) {
  const int64_t block = m / kBlockTokens * kBlockTokens;
  const int64_t tokens = std::min(kBlockTokens, p.rows - block);
  const int64_t columns = std::min(p.block_groups * kWeightGroup, p.weight.kp - k);
  return (block * p.weight.kp + k * tokens + (m - block) * columns) * p.code_bytes;
}

void PackToken(const Product& p, int64_t m) {
  const Activation& x = p.args.x;
  const int64_t first = m / p.tile_tokens * p.tile_tokens;
  const int64_t count = std::min(p.tile_tokens, p.rows - first);
  const int8_t* from = x.q + m * x.q_stride;
  const int64_t block_columns = p.block_groups * kWeightGroup;
  for (int64_t block = 0; block < p.weight.kp; block += block_columns) {
    const int64_t end = std::min(p.weight.kp, block + block_columns);
    int8_t* to = p.x + TileOffset(p, first, block) + (m - first) * 4 * p.code_bytes;
    if (p.code_bytes == 2) {
      for (int64_t k = block; k < end; k += 4, to += count * 8) {
        const int16_t four[4] = {from[k], from[k + 2], from[k + 1], from[k + 3]};
        std::memcpy(to, four, sizeof(four));
      }
    } else {
      for (int64_t k = block; k < end; k += 4, to += count * 4) std::memcpy(to, from + k, 4);
    }
  }
  if (p.x_sums == nullptr) return;
  int16_t* sums = p.x_sums + m * p.weight.group_pairs() * 2;
  sums[p.weight.group_pairs() * 2 - 1] = 0;  // where the number of groups is odd
  p.kernels.group_sums(from, p.weight.groups(), sums);
}

// Sums of `count` tokens from m -> out.
void Finish(const Product& p, int64_t unit, int64_t m, int64_t count, int32_t* c) {
  const PanelLinear& w = p.weight;
  const int64_t unit_rows = p.kernels.unit_panels * kPanelRows;
  const int64_t row = unit * unit_rows;
  EpilogueArgs e = OutputOf(w, p.args, row, unit_rows, m, count, c);
  if (p.x_sums != nullptr) {
    e.group_pairs = w.group_pairs();
    e.offset_count = e.group_pairs * kPanelRows * 2;
    e.offsets = w.offsets.as<int16_t>() + row / kPanelRows * e.offset_count;
    e.x_sums = p.x_sums + m * e.group_pairs * 2;
  }
  if (w.format == WeightFormat::kW8 && p.kernels.biased_w8 && p.expanded == nullptr)
    e.row_sum_factor = -128;
  p.kernels.epilogue(e);
}

// One thread's scratch for a unit.
struct Scratch {
  int32_t* c;         // [block tokens][unit rows]
  uint8_t* expanded;  // [unit panels][kExpandedBytes]
};

// All columns of one unit of rows for tokens [m0, m1).
void MultiplyUnit(const Product& p, int64_t unit, int64_t m0, int64_t m1, const Scratch& scratch) {
  const PanelLinear& w = p.weight;
  const int64_t unit_rows = p.kernels.unit_panels * kPanelRows;
  const int64_t panel = unit * p.kernels.unit_panels;
  std::memset(scratch.c, 0, static_cast<size_t>((m1 - m0) * unit_rows) * sizeof(int32_t));
  TileArgs t;
  t.panel_bytes = w.panel_bytes;
  t.scale_bytes = w.groups() * kPanelRows;
  t.expanded = scratch.expanded;
  t.expanded_panel_bytes = kExpandedBytes;
  for (int64_t g = 0; g < w.groups(); g += p.block_groups) {
    t.groups = std::min(p.block_groups, w.groups() - g);
    t.codes = w.codes.as<uint8_t>() + panel * w.panel_bytes + g * (w.panel_bytes / w.groups());
    if (p.x_sums != nullptr)
      t.scales = w.scales.as<uint8_t>() + panel * t.scale_bytes + g * kPanelRows;
    for (int64_t m = m0; m < m1; m += p.tile_tokens) {
      const int64_t count = std::min(p.tile_tokens, m1 - m);
      t.x = p.x + TileOffset(p, m, g * kWeightGroup);
      t.c = scratch.c + (m - m0) * unit_rows;
      (m == m0 ? p.first_tile : p.tiles)[count](t);
    }
  }
  Finish(p, unit, m0, m1 - m0, scratch.c);
}

Status LinearInteger(OpContext& context, const LinearArgs& args, const PanelKernels& kernels) {
  const auto& w = static_cast<const PanelLinear&>(*args.weight);
  const bool group = w.format == WeightFormat::kW4Group128;
  const bool w8 = w.format == WeightFormat::kW8;
  const int64_t rows = args.out.rows;
  const Expanded* expanded = ExpandedWay(kernels, w.format, rows);
  const TileFunction* one_way = w8 ? kernels.w8 : group ? kernels.w4_group : kernels.w4_channel;
  const int64_t code_bytes = expanded == nullptr ? 1 : expanded->code_bytes;
  const int64_t x_bytes = (rows * w.kp * code_bytes + 63) / 64 * 64;
  const int64_t sum_bytes = group ? rows * w.group_pairs() * 4 : 0;
  auto* packed =
      static_cast<int8_t*>(context.workspace.Shared(static_cast<size_t>(x_bytes + sum_bytes)));
  const Product p = {
      .weight = w,
      .args = args,
      .kernels = kernels,
      .first_tile = expanded != nullptr ? expanded->first : one_way,
      .tiles = expanded != nullptr ? expanded->next : one_way,
      .tile_tokens = expanded != nullptr ? expanded->tokens
                     : w8                ? kernels.tokens_w8
                                         : kernels.tokens_w4,
      .expanded = expanded,
      .rows = rows,
      .code_bytes = code_bytes,
      .block_groups = expanded == nullptr
                          ? kBlockGroups
                          : kExpandedBytes / (kWeightGroup * kPanelRows * code_bytes),
      .x = packed,
      .x_sums = group ? reinterpret_cast<int16_t*>(packed + x_bytes) : nullptr};
  context.pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) PackToken(p, m);
  });
  const int64_t units =
      (w.n + kernels.unit_panels * kPanelRows - 1) / (kernels.unit_panels * kPanelRows);
  const int64_t blocks = (rows + kBlockTokens - 1) / kBlockTokens;
  const size_t c_bytes =
      static_cast<size_t>(kBlockTokens * kernels.unit_panels * kPanelRows) * sizeof(int32_t);
  const auto expanded_bytes = static_cast<size_t>(kernels.unit_panels * kExpandedBytes);
  ForEachUnit(context.pool, units, blocks, [&](int64_t unit, int64_t block, int thread) {
    void* memory = context.workspace.PerThread(thread, c_bytes + expanded_bytes);
    const Scratch scratch = {.c = static_cast<int32_t*>(memory),
                             .expanded = static_cast<uint8_t*>(memory) + c_bytes};
    const int64_t m = block * kBlockTokens;
    MultiplyUnit(p, unit, m, std::min(rows, m + kBlockTokens), scratch);
  });
  return {};
}

Status LinearHalf(OpContext& context, const LinearArgs& args, const PanelKernels& kernels) {
  const auto& w = static_cast<const PanelLinear&>(*args.weight);
  const int64_t rows = args.out.rows;
  auto* x = static_cast<float*>(
      context.workspace.Shared(static_cast<size_t>(rows * w.kp) * sizeof(float)));
  context.pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      std::copy_n(args.x.f32 + m * args.x.f32_stride, w.k, x + m * w.kp);
      std::fill_n(x + m * w.kp + w.k, w.kp - w.k, 0.0f);
    }
  });
  const int64_t panels = (w.n + kPanelRows - 1) / kPanelRows;
  const int64_t blocks = (rows + kHalfBlockTokens - 1) / kHalfBlockTokens;
  ForEachUnit(context.pool, panels, blocks, [&](int64_t panel, int64_t block, int) {
    const int64_t m = block * kHalfBlockTokens;
    const int64_t row = panel * kPanelRows;
    kernels.half({.w = w.codes.as<uint16_t>() + row * w.kp,
                  .rows = std::min(kPanelRows, w.n - row),
                  .k16 = w.kp,
                  .x = x + m * w.kp,
                  .tokens = std::min(kHalfBlockTokens, rows - m),
                  .out = args.out.row(m) + row,
                  .out_stride = args.out.stride,
                  .bias = w.bias.empty() ? nullptr : w.bias.data() + row});
  });
  return {};
}

}  // namespace

void ForEachUnit(ThreadPool& pool, int64_t units, int64_t blocks,
                 const std::function<void(int64_t unit, int64_t block, int thread)>& body) {
  constexpr int64_t kUnitsPerThread = 4;
  if (units >= kUnitsPerThread * pool.size()) {
    pool.ParallelFor(units, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t unit = begin; unit < end; ++unit) body(unit, block, thread);
      }
    });
    return;
  }
  pool.ParallelFor(units * blocks, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) body(item % units, item / units, thread);
  });
}

EpilogueArgs OutputOf(const PanelLinear& w, const LinearArgs& args, int64_t row, int64_t rows,
                      int64_t m, int64_t count, int32_t* c) {
  const auto at = static_cast<size_t>(row);
  EpilogueArgs e;
  e.c = c;
  e.tokens = static_cast<int>(count);
  e.scale = w.row_scale.data() + at;
  e.scaled_zero = w.scaled_zero.empty() ? nullptr : w.scaled_zero.data() + at;
  e.bias = w.bias.empty() ? nullptr : w.bias.data() + at;
  e.x_scale = args.x.scale + m;
  e.row_sum = args.x.row_sum + m;
  e.out = args.out.row(m) + row;
  e.out_stride = args.out.stride;
  e.rows = std::min(w.n - row, rows);
  return e;
}

Status LinearPanels(OpContext& context, const LinearArgs& args, const PanelKernels& kernels) {
  if (args.out.rows == 0) return {};
  if (args.weight->format == WeightFormat::kFloat) return LinearFloat(context, args);
  if (args.weight->format == WeightFormat::kHalfFixedOrder)
    return LinearHalf(context, args, kernels);
  return LinearInteger(context, args, kernels);
}

}  // namespace qserve::kernels::cpu
