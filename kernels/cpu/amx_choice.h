// Which linears go to AMX's tiles and how they are cut: pure functions of shapes, so that they are
// tested on any machine. Used by linear_avx512amx.cc and amx_panel.cc. No choice changes a bit of a
// result: sums of integers are exact in any order.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qserve::kernels::cpu {

// True from the number of tokens where tiles are expected to beat VNNI, whose tiles are as tall as
// the batch needs and whose 4-bit codes are multiplied as they lie. Counted from instructions, not
// measured: unpacking 128 codes costs the tiles about as much as four tokens (kW4PerChannel) or a
// dozen (kW4Group128) cost VNNI, a tile of fewer than 16 tokens costs as much as a whole one, and
// up to about 24 tokens either way waits for memory.
bool TilesPay(WeightFormat format, int64_t tokens);

// Tokens that share one unpacking of the weights: a multiple of 32 in [128, 512]. `padded_columns`
// int8 of each stay in a second-level cache of 2 MiB beside sums and weights where 128 do.
int64_t MaxChunkTokens(int64_t padded_columns);

// The same for a batch of `tokens`, cut into chunks as even as multiples of 32 allow; never above
// MaxChunkTokens. tokens >= 1.
int64_t ChunkTokens(int64_t tokens, int64_t padded_columns);

// Panels of 16 rows that a thread multiplies at once: 4, so that activations are fetched once for
// 64 rows, or 2 where fewer, larger units would leave threads without work. `panels` is even.
int64_t UnitPanels(int64_t panels, int64_t chunks, int threads);

}  // namespace qserve::kernels::cpu
