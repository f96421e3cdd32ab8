// The linear operation by tiles: the driver that cuts a product into calls of leaf functions, over
// the panels that every fast linear shares (linear_panel.h). As there, the driver is compiled
// without instruction-set flags and an instruction set provides the leaves.
//
// A tile is 16 rows of 64 bytes. 64 columns of a panel of 8-bit weights are a tile as they lie
// ([16][16 rows][4 bytes], what AMX wants of its second operand); 4-bit ones are unpacked to it,
// once for a chunk of tokens. x is packed at each call into [16 tokens][kp / 64][16][64 bytes], the
// last tokens' tile filled up with zeros.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_panel.h"

namespace qserve::kernels::cpu {

inline constexpr int64_t kTileTokens = 16;
inline constexpr int64_t kTileColumns = 64;
inline constexpr int64_t kTileBytes = 1024;

// 4-bit codes of one panel, whole groups of 128 columns, the first with an even number -> int8.
struct UnpackArgs {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;   // kW4Group128: [groups][16]
  const int16_t* offsets = nullptr;  // kW4Group128: [group pairs][16][2]
  int64_t groups = 0;
  int8_t* to = nullptr;  // [2 groups][tile]
};

// c[token][32] = or += 16 or 32 tokens x the 32 rows of two panels, over `steps` times 64 columns.
struct TileProduct {
  const int8_t* x = nullptr;  // of 16 tokens: [steps][tile]
  int64_t x_bytes = 0;        // from there to the next 16 tokens'
  const int8_t* w = nullptr;  // of the first panel: [steps][tile]
  int64_t w_bytes = 0;        // from there to the next panel's
  int64_t steps = 0;
  bool add = false;  // to what c holds
  int32_t* c = nullptr;
};

// What tiles of any type provide.
struct TileFunctions {
  // A thread configures its tile registers before multiplying and gives them up after, so that no
  // switch of threads has to save them. No-ops where there are none.
  void (*configure)() = nullptr;
  void (*release)() = nullptr;
  void (*multiply[3])(const TileProduct& product) = {};  // by tiles of tokens, 1 or 2
};

// The leaf functions of an instruction set.
struct TileKernels : TileFunctions {
  void (*unpack_channel)(const UnpackArgs& args) = nullptr;
  // code * scale + offset, modulo 256: exact, since no stored code leaves int8 (linear_weight.h);
  // padding may, against zeros of x.
  void (*unpack_group)(const UnpackArgs& args) = nullptr;
  void (*epilogue)(const EpilogueArgs& args) = nullptr;  // of two panels
  // The linear of the same weights for what is no work for tiles.
  Status (*without_tiles)(OpContext& context, const LinearArgs& args) = nullptr;
};

// Multiplies a weight made by PackPanels, by tiles where TilesPay (amx_choice.h). Executor's
// thread; leaf functions run on the pool's.
Status LinearByChoice(OpContext& context, const LinearArgs& args, const TileKernels& kernels);

// The same by tiles for any number of tokens, if the format is an integer one.
Status LinearTiles(OpContext& context, const LinearArgs& args, const TileKernels& kernels);

// The epilogues of two panels that the linears of 16 lanes have anyway.
namespace avx512vnni {
void FinishPair(const EpilogueArgs& args);
}
namespace emulated {
void FinishPair(const EpilogueArgs& args);
// Every instruction as a loop; for tests.
extern const TileKernels kTileKernels;
}  // namespace emulated

}  // namespace qserve::kernels::cpu
