// bf16 products in AMX-BF16, beside AVX512 for few tokens and for a CPU whose tiles would give
// other bits. Leaf functions run on the pool's threads, whose tile registers are theirs between
// Configure and Release. Instructions in assembly: see linear_avx512amx.cc.
#include "kernels/amx_configuration.h"
#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/bf16_tiles.h"

namespace qserve::kernels::cpu::avx512amx {
namespace {

constexpr TileConfiguration kConfiguration;

struct FloatTiles {
  static void Configure() { asm volatile("ldtilecfg %0" : : "m"(kConfiguration)); }
  static void Release() { asm volatile("tilerelease"); }

  template <int kTile>
  void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kC, int kA, int kB>
  void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

constexpr Bf16TileKernels kKernels = {
    .configure = &FloatTiles::Configure,
    .release = &FloatTiles::Release,
    .multiply = {nullptr, &MultiplyTiles<FloatTiles, 1>, &MultiplyTiles<FloatTiles, 2>}};

}  // namespace

bool MayUseBf16Tiles() {
  static const bool may = TilesMultiplyBf16() && TilesAgree(kKernels);
  return may;
}

Status LinearBf16(OpContext& context, const LinearArgs& args) {
  if (!Bf16TilesPay(args.out.rows) || !MayUseBf16Tiles()) return avx512::LinearBf16(context, args);
  return MultiplyBf16ByTiles(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avx512amx
