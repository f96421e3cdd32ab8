// The packed order shared by the fast linears, and the driver that cuts a product into leaf calls.
// The driver is compiled without instruction-set flags; an instruction set provides a PanelKernels
// of leaf functions over plain pointers, so that nothing from shared headers is compiled with its
// flags.
//
// Panels of 16 rows, their number even (the last may be zeros), columns padded to kp, a multiple of
// 128:
//   kW4*:  [panel][kp / 8][16 rows][4 bytes]: byte j of block b has code 8 b + j in its low nibble,
//   8 b + 4 + j in its high one kW8:   [panel][kp / 4][16 rows][4 bytes]: byte j of block b is code
//   4 b + j kW4Group128 also: group scales [panel][groups][16] bytes, offsets [panel][groups / 2
//   rounded up][16 rows][2] int16 kHalfFixedOrder: [panel][16 rows][k padded to 16] fp16, row after
//   row
// x is packed at each call: [96 tokens][block of columns][tile of tokens][columns / 4][tokens of
// the tile][4 bytes], so that tiles which are multiplied one after another lie so; as int16, four
// columns in the order 0, 2, 1, 3, for codes that were widened.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

inline constexpr int64_t kPanelRows = 16;
inline constexpr int kMaxTileTokens = 8;

// Codes x activations of one unit of rows (one or two panels) and one tile of tokens, over whole
// groups of 128 columns: c[token][unit rows] += the integer products.
struct TileArgs {
  const uint8_t* codes = nullptr;   // of the first panel
  int64_t panel_bytes = 0;          // from there to the next panel's
  const uint8_t* scales = nullptr;  // kW4Group128: [groups][16] of the first panel
  int64_t scale_bytes = 0;          // from there to the next panel's
  const int8_t* x = nullptr;        // [groups * 32][tokens][4]
  int64_t groups = 0;
  int32_t* c = nullptr;
  // Codes taken apart: [groups * 32][16 rows][4] of each panel, 1 or 2 bytes a code. Written by the
  // first tile of a block, read by the next ones in place of `codes` (Expanded).
  uint8_t* expanded = nullptr;
  int64_t expanded_panel_bytes = 0;
};
using TileFunction = void (*)(const TileArgs& args);

// c and what belongs to it -> out, for one unit of rows and some tokens.
struct EpilogueArgs {
  int32_t* c = nullptr;  // [tokens][unit rows], changed
  int tokens = 0;
  const int16_t* offsets =
      nullptr;               // kW4Group128: [group pairs][16][2] of the first panel, else null
  int64_t offset_count = 0;  // from there to the next panel's
  const int16_t* x_sums = nullptr;  // kW4Group128: [tokens][group pairs][2]
  int64_t group_pairs = 0;
  int32_t row_sum_factor =
      0;  // added to c: this times the token's row sum (codes that were stored biased)
  const float* scale = nullptr;        // [unit rows]
  const float* scaled_zero = nullptr;  // [unit rows] or null
  const float* bias = nullptr;         // [unit rows] or null
  const float* x_scale = nullptr;      // [tokens]
  const int32_t* row_sum = nullptr;    // [tokens]
  float* out = nullptr;                // [tokens][out_stride], `rows` columns are written
  int64_t out_stride = 0;
  int64_t rows = 0;
};

// fp16 rows x fp32 tokens in the fixed order of 16 lanes: out[t][r] for r < rows.
struct HalfArgs {
  const uint16_t* w = nullptr;  // [rows][k16]
  int64_t rows = 0;             // 1..16
  int64_t k16 = 0;              // columns, padded to 16
  const float* x = nullptr;     // [tokens][k16], zero-padded
  int64_t tokens = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const float* bias = nullptr;  // [rows] or null
};

// A second way for more tokens than a tile: the first tile of a block of tokens leaves the codes
// that it took apart to the next ones. Absent where tokens == 0.
struct Expanded {
  int tokens = 0;      // largest tile
  int more_than = 0;   // tokens of a product for which this way is taken
  int code_bytes = 1;  // of a code taken apart; 2: x is packed as int16 too
  TileFunction first[kMaxTileTokens + 1] = {};
  TileFunction next[kMaxTileTokens + 1] = {};
};

// The leaf functions of an instruction set; tiles are indexed by their number of tokens.
struct PanelKernels {
  int unit_panels = 1;  // panels of a unit: 1 or 2
  int tokens_w4 = 1;    // largest tile
  int tokens_w8 = 1;
  bool biased_w8 = false;  // kW8 codes are used as code + 128, to be taken back in the epilogue
  TileFunction w4_channel[kMaxTileTokens + 1] = {};
  TileFunction w4_group[kMaxTileTokens + 1] = {};
  TileFunction w8[kMaxTileTokens + 1] = {};
  Expanded expanded_w4_channel;
  Expanded expanded_w4_group;
  Expanded expanded_w8;
  void (*group_sums)(const int8_t* x, int64_t groups,
                     int16_t* sums) = nullptr;  // of each 128 columns
  void (*epilogue)(const EpilogueArgs& args) = nullptr;
  void (*half)(const HalfArgs& args) = nullptr;
};

// Multiplies a weight made by PackPanels. Executor's thread; leaf functions run on the pool's.
Status LinearPanels(OpContext& context, const LinearArgs& args, const PanelKernels& kernels);

// body(unit, block, thread) for every pair, the units of a block one after another so that its x
// stays in the cache. Blocks differ in size (the last one is short): where there are rows enough,
// threads share the rows and each goes through all blocks, which is even; else they share the
// pairs.
void ForEachUnit(ThreadPool& pool, int64_t units, int64_t blocks,
                 const std::function<void(int64_t unit, int64_t block, int thread)>& body);

class PanelLinear final : public PackedLinear {
 public:
  int64_t kp = 0;      // padded columns
  int64_t panels = 0;  // even
  int64_t panel_bytes = 0;
  AlignedMemory codes;
  AlignedMemory scales;          // group scales
  AlignedMemory offsets;         // group offsets
  std::vector<float> row_scale;  // per row, padded to whole panels, as are the next two
  std::vector<float> scaled_zero;
  std::vector<float> bias;

  int64_t groups() const { return kp / kWeightGroup; }
  int64_t group_pairs() const { return (groups() + 1) / 2; }
};

// What every epilogue of sums `c` of `count` tokens from m and `rows` rows of w from `row` needs;
// group offsets and the factor of row sums are left out.
EpilogueArgs OutputOf(const PanelLinear& w, const LinearArgs& args, int64_t row, int64_t rows,
                      int64_t m, int64_t count, int32_t* c);

}  // namespace qserve::kernels::cpu
