// AMX's linears with tile registers as arrays and every instruction as a loop: the driver, the
// order of tiles and the indexing are the ones that serve, so that all but the instructions
// themselves is tested on any machine. Used by tests.
#include <cstring>

#include "kernels/cpu/amx_registers_emulated.h"
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/linear.h"

namespace qserve::kernels::cpu::emulated {
namespace {

class TileRegisters : public AmxRegisters {
 public:
  // Sums wrap as the instruction's do.
  template <int kC, int kA, int kB>
  void Dot() {
    for (int m = 0; m < 16; ++m) {
      uint32_t sums[16];
      std::memcpy(sums, tile_[kC][m], sizeof(sums));
      for (int k = 0; k < 64; ++k) {
        const int a = tile_[kA][m][k];
        for (int n = 0; n < 16; ++n)
          sums[n] += static_cast<uint32_t>(a * tile_[kB][k / 4][n * 4 + k % 4]);
      }
      std::memcpy(tile_[kC][m], sums, sizeof(sums));
    }
  }
};

struct Bytes {
  struct Int {
    uint8_t byte[64];
  };
  template <class Make>
  static Int Each(Make make) {
    Int result;
    for (int i = 0; i < 64; ++i) result.byte[i] = static_cast<uint8_t>(make(i));
    return result;
  }
  static Int Load(const void* from) {
    Int result;
    std::memcpy(&result, from, sizeof(result));
    return result;
  }
  static void Store(void* to, const Int& value) { std::memcpy(to, &value, sizeof(value)); }
  static void Prefetch(const void* /*from*/) {}
  static Int Low(const Int& v) {
    return Each([&](int i) { return v.byte[i] & 15; });
  }
  static Int High(const Int& v) {
    return Each([&](int i) { return v.byte[i] >> 4; });
  }
  static Int Scale(const uint8_t* scales) {
    return Each([&](int i) { return scales[i / 4]; });
  }
  static Int Offset(const int16_t* offsets, bool second) {
    return Each([&](int i) { return offsets[i / 4 * 2 + (second ? 1 : 0)]; });
  }
  static Int Scaled(const Int& v, const Int& scale, const Int& offset) {
    return Each([&](int i) { return v.byte[i] * scale.byte[i] + offset.byte[i]; });
  }
};

}  // namespace

constinit const TileKernels kTileKernels =
    MakeTileKernels<TileRegisters, Bytes>(&FinishPair, &LinearOf16Lanes);

Status LinearByTiles(OpContext& context, const LinearArgs& args) {
  return LinearTiles(context, args, kTileKernels);
}

}  // namespace qserve::kernels::cpu::emulated
