// Packing for bf16 products, and the driver that cuts a product into leaf calls.
//
// A panel's codes of 256 columns (8 KiB) stay in the first-level cache while a block's tokens pass
// over them; x of a block stays in the second-level one.
#include "kernels/cpu/bf16_panel.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kBlockTokens = 48;  // a multiple of every leaf's most
constexpr int64_t kBlockSteps = 8;    // 256 columns

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// One row's values to where they belong in its panel, of which `to` is the first.
void PackRow(const float* row, int64_t k, int64_t in_panel, uint16_t* to) {
  for (int64_t i = 0; i < k; ++i)
    to[i / 2 * kPanelRows * 2 + in_panel * 2 + i % 2] = RoundToBf16(row[i]);
}

// One call's constants.
struct Product {
  const Bf16Linear& weight;
  const LinearArgs& args;
  const Bf16Kernels& kernels;
  int64_t rows;  // tokens
  float* x;      // [tile of tokens][kp][tokens of the tile]
};

void PackToken(const Product& p, int64_t m) {
  const int64_t most = p.kernels.tokens;
  const int64_t first = m / most * most;
  const int64_t count = std::min(most, p.rows - first);
  const float* from = p.args.x.f32 + m * p.args.x.f32_stride;
  float* to = p.x + first * p.weight.kp + (m - first);
  for (int64_t k = 0; k < p.weight.k; ++k, to += count) *to = Bf16ToFloat(RoundToBf16(from[k]));
  for (int64_t k = p.weight.k; k < p.weight.kp; ++k, to += count) *to = 0;
}

// All columns of one panel for tokens [m0, m1), at most a block.
void MultiplyPanel(const Product& p, int64_t panel, int64_t m0, int64_t m1) {
  const Bf16Linear& w = p.weight;
  float c[kBlockTokens * kPanelRows] = {};
  const int64_t steps = w.kp / kBf16Columns;
  for (int64_t step = 0; step < steps; step += kBlockSteps) {
    Bf16Product t;
    t.w = w.values.as<uint16_t>() + (panel * steps + step) * kBf16Tile;
    t.steps = std::min(kBlockSteps, steps - step);
    for (int64_t m = m0; m < m1; m += p.kernels.tokens) {
      const int64_t count = std::min<int64_t>(p.kernels.tokens, m1 - m);
      t.x = p.x + m * w.kp + step * kBf16Columns * count;
      t.c = c + (m - m0) * kPanelRows;
      p.kernels.multiply[count](t);
    }
  }
  StoreBf16(w, p.args, panel * kPanelRows, kPanelRows, m0, m1 - m0, c);
}

}  // namespace

StatusOr<std::unique_ptr<PackedLinear>> PackBf16(ThreadPool& pool, const LinearWeight& weight) {
  auto packed = std::make_unique<Bf16Linear>();
  packed->format = weight.format;
  packed->n = weight.n;
  packed->k = weight.k;
  packed->kp = RoundUp(weight.k, kBf16Columns);
  packed->panels = RoundUp(weight.n, 2 * kPanelRows) / kPanelRows;
  const int64_t panel_values = packed->kp * kPanelRows;
  packed->bytes = packed->panels * panel_values * static_cast<int64_t>(sizeof(uint16_t));
  packed->values = AlignedMemory::Allocate(packed->bytes);  // zeroed
  if (packed->values.data() == nullptr) {
    return Status(StatusCode::kOutOfMemory,
                  "cpu: no memory of " + std::to_string(packed->bytes) + " bytes for weights");
  }
  packed->bias_values = weight.bias;
  // Each thread packs the panels that it will multiply, so that memory lies near.
  pool.ParallelFor(packed->panels, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(weight.k));
    for (int64_t n = begin * kPanelRows; n < std::min(weight.n, end * kPanelRows); ++n) {
      DequantizeRow(weight, n, row.data());
      PackRow(row.data(), weight.k, n % kPanelRows,
              packed->values.as<uint16_t>() + n / kPanelRows * panel_values);
    }
  });
  return std::unique_ptr<PackedLinear>(std::move(packed));
}

void StoreBf16(const Bf16Linear& w, const LinearArgs& args, int64_t row, int64_t rows, int64_t m,
               int64_t count, const float* c) {
  const int64_t stored = std::min(rows, w.n - row);
  for (int64_t i = 0; i < count; ++i, c += rows) {
    float* out = args.out.row(m + i) + row;
    if (w.bias_values.empty()) {
      std::copy_n(c, std::max<int64_t>(stored, 0), out);
      continue;
    }
    for (int64_t r = 0; r < stored; ++r)
      out[r] = c[r] + w.bias_values[static_cast<size_t>(row + r)];
  }
}

Status MultiplyBf16(OpContext& context, const LinearArgs& args, const Bf16Kernels& kernels) {
  const auto& w = static_cast<const Bf16Linear&>(*args.weight);
  const int64_t rows = args.out.rows;
  if (rows == 0) return {};
  const Product p = {.weight = w,
                     .args = args,
                     .kernels = kernels,
                     .rows = rows,
                     .x = static_cast<float*>(context.workspace.Shared(
                         static_cast<size_t>(rows * w.kp) * sizeof(float)))};
  context.pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) PackToken(p, m);
  });
  const int64_t panels = (w.n + kPanelRows - 1) / kPanelRows;
  const int64_t blocks = (rows + kBlockTokens - 1) / kBlockTokens;
  ForEachUnit(context.pool, panels, blocks, [&](int64_t panel, int64_t block, int) {
    const int64_t m = block * kBlockTokens;
    MultiplyPanel(p, panel, m, std::min(rows, m + kBlockTokens));
  });
  return {};
}

}  // namespace qserve::kernels::cpu
