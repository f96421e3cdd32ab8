// bf16 products in AMX-BF16, beside AVX512 for few tokens and for a CPU whose tiles would give
// other bits. Leaf functions run on the pool's threads.
#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/amx_registers.h"
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/bf16_tiles.h"

namespace qserve::kernels::cpu::avx512amx {
namespace {

struct FloatTiles : AmxRegisters {
  template <int kC, int kA, int kB>
  void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

constexpr TileFunctions kTiles = MakeTileFunctions<FloatTiles>();

}  // namespace

bool MayUseBf16Tiles() {
  static const bool may = TilesMultiplyBf16() && TilesAgree(kTiles);
  return may;
}

Status LinearBf16(OpContext& context, const LinearArgs& args) {
  if (!Bf16TilesPay(args.out.rows) || !MayUseBf16Tiles()) return avx512::LinearBf16(context, args);
  return MultiplyBf16ByTiles(context, args, kTiles);
}

}  // namespace qserve::kernels::cpu::avx512amx
