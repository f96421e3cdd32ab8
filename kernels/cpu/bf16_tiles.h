// bf16 products by AMX's tiles: the driver, its leaves, and the question whether a CPU's tiles keep
// to the arithmetic of bf16_panel.h. Tiles are those of amx_panel.h with 32 bf16 in a row's 64
// bytes; x is packed at each call into [16 tokens][kp / 32][16][32] bf16, the last tokens' tile
// filled up with zeros; c of a TileProduct points at fp32 sums.
#pragma once

#include <cstdint>

#include "kernels/cpu/amx_panel.h"
#include "kernels/cpu/bf16_panel.h"

namespace qserve::kernels::cpu {

// True from the number of tokens where tiles are expected to beat fused multiply-adds: a tile costs
// 16 cycles whatever its tokens, AVX512 needs 16 for each token. Counted, not measured; either way
// few tokens wait for memory. No choice changes a bit of a result.
bool Bf16TilesPay(int64_t tokens);

// Multiplies a weight made by PackBf16. Executor's thread; leaf functions run on the pool's.
Status MultiplyBf16ByTiles(OpContext& context, const LinearArgs& args, const TileFunctions& tiles);

// Whether these tiles give the bits of reference::MultiplyBf16Panel for some thousand sums of
// terms of very different size, which another order or rounding would change. Any thread.
bool TilesAgree(const TileFunctions& tiles);

namespace emulated {
extern const TileFunctions kBf16Tiles;  // every instruction as a loop; for tests
}

}  // namespace qserve::kernels::cpu
