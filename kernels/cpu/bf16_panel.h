// Full-precision linears by bf16 products with fp32 sums (DeviceOptions::linear_type): the packed
// order, the arithmetic, and the driver over leaf functions. As in linear_panel.h the driver is
// compiled without instruction-set flags and an instruction set provides the leaves.
//
// Arithmetic, the same to the bit on every instruction set: what Intel's manual gives for
// TDPBF16PS, 32 columns at a time. From 0, the even columns' products are added up one after the
// other by fused multiply-add, and so are the odd ones'; the two sums are added, and their sum is
// added to what the columns before gave. Every step rounds to nearest even; the bias comes last.
// A row's bits depend on its x and the weights alone.
//
// The instruction takes subnormal numbers for zero. They never arise: weights and activations are
// rounded to bf16 (nearest even) and those below 2^-56 to 0, so that all products and sums are
// multiples of 2^-126, the smallest normal number.
//
// Panels of 16 rows, their number even (the last may be zeros), columns padded with zeros to kp, a
// multiple of 32: [panel][kp / 32][16 pairs of columns][16 rows][2 columns] bf16, of which 32
// columns (1 KiB) are a tile as AMX wants its second operand.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/linear_panel.h"
#include "kernels/cpu/op_table.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cpu {

inline constexpr int64_t kBf16Columns = 32;
inline constexpr int64_t kBf16Tile = kBf16Columns * kPanelRows;  // values
inline constexpr int kMaxBf16Tokens = 12;

// As weights and activations are rounded.
constexpr uint16_t RoundToBf16(float value) {
  constexpr uint16_t kLeast = (127 - 56) << 7;  // 2^-56
  const uint16_t bits = FloatToBf16(value);
  return (bits & 0x7fff) < kLeast ? uint16_t{0} : bits;
}

class Bf16Linear final : public PackedLinear {
 public:
  int64_t kp = 0;
  int64_t panels = 0;  // even
  AlignedMemory values;
  std::vector<float> bias_values;  // per row, or empty
};

// Of a kFloat weight, for all functions below.
StatusOr<std::unique_ptr<PackedLinear>> PackBf16(ThreadPool& pool, const LinearWeight& weight);

// c[token][16 rows] += some tokens x one panel over `steps` times 32 columns.
struct Bf16Product {
  const float* x = nullptr;     // [columns][tokens], rounded to bf16
  const uint16_t* w = nullptr;  // [steps][tile]
  int64_t steps = 0;
  float* c = nullptr;
};
using Bf16Function = void (*)(const Bf16Product& product);

// The leaf functions of an instruction set, by their number of tokens.
struct Bf16Kernels {
  int tokens = 1;  // most
  Bf16Function multiply[kMaxBf16Tokens + 1] = {};
};

// Multiplies a weight made by PackBf16. Executor's thread; leaf functions run on the pool's.
Status MultiplyBf16(OpContext& context, const LinearArgs& args, const Bf16Kernels& kernels);

// Sums c of `count` tokens from m and `rows` (padded) rows of w from `row`, [count][rows], with the
// bias -> out.
void StoreBf16(const Bf16Linear& w, const LinearArgs& args, int64_t row, int64_t rows, int64_t m,
               int64_t count, const float* c);

// The linear of each instruction set (OpTable::linear_bf16).
namespace reference {
Status LinearBf16(OpContext& context, const LinearArgs& args);
// Its leaf, of one token: the arithmetic above as a loop.
void MultiplyBf16Panel(const Bf16Product& product);
}  // namespace reference
namespace avx2 {
Status LinearBf16(OpContext& context, const LinearArgs& args);
}
namespace avx512 {
Status LinearBf16(OpContext& context, const LinearArgs& args);
}
// By tiles where Bf16TilesPay (bf16_tiles.h) and this CPU's keep to the arithmetic, else AVX512.
namespace avx512amx {
Status LinearBf16(OpContext& context, const LinearArgs& args);
// Whether it uses tiles. Asks the CPU once (TilesAgree).
bool MayUseBf16Tiles();
}  // namespace avx512amx
namespace emulated {
// The leaves of 16 lanes and the tiles, their instructions as loops; for tests anywhere.
Status LinearBf16Of16Lanes(OpContext& context, const LinearArgs& args);
Status LinearBf16ByTiles(OpContext& context, const LinearArgs& args);
}  // namespace emulated

}  // namespace qserve::kernels::cpu
