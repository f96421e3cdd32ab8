// bf16 products with registers as arrays and every instruction as a loop: drivers, order and
// indexing are the ones that serve, so that all but the instructions themselves is tested on any
// machine. The tile's product follows the manual's text of TDPBF16PS. Used by tests.
#include <cmath>
#include <cstring>

#include "kernels/cpu/amx_registers_emulated.h"
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/bf16_tiles.h"

namespace qserve::kernels::cpu::emulated {
namespace {

struct Float16Lanes {
  struct Float {
    float lane[16];
  };
  static constexpr int kLanes = 16;
  template <class Make>
  static Float Each(Make make) {
    Float result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = make(i);
    return result;
  }
  static Float Zero() { return {}; }
  static Float Load(const float* from) {
    return Each([&](int i) { return from[i]; });
  }
  static void Store(float* to, const Float& value) { std::memcpy(to, value.lane, sizeof(value)); }
  static Float Broadcast(const float* from) {
    return Each([&](int) { return *from; });
  }
  static Float Add(const Float& a, const Float& b) {
    return Each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Float MultiplyAdd(const Float& a, const Float& b, const Float& c) {
    return Each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static Float Even(const uint16_t* pairs) {
    return Each([&](int i) { return Bf16ToFloat(pairs[2 * i]); });
  }
  static Float Odd(const uint16_t* pairs) {
    return Each([&](int i) { return Bf16ToFloat(pairs[2 * i + 1]); });
  }
};

class FloatTiles : public AmxRegisters {
 public:
  template <int kC, int kA, int kB>
  void Dot() {
    for (int m = 0; m < 16; ++m) {
      float sums[32] = {};
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 32; ++n)
          sums[n] = std::fma(Value(kA, m, 2 * k + n % 2), Value(kB, k, n), sums[n]);
      }
      float c[16];
      std::memcpy(c, tile_[kC][m], sizeof(c));
      for (int n = 0; n < 16; ++n) c[n] = c[n] + (sums[2 * n] + sums[2 * n + 1]);
      std::memcpy(tile_[kC][m], c, sizeof(c));
    }
  }

 private:
  float Value(int tile, int row, int i) const {
    uint16_t bits;
    std::memcpy(&bits, tile_[tile][row] + 2 * i, sizeof(bits));
    return Bf16ToFloat(bits);
  }
};

constexpr Bf16Kernels kKernels = MakeBf16Kernels<Float16Lanes, 12>();

}  // namespace

constinit const TileFunctions kBf16Tiles = MakeTileFunctions<FloatTiles>();

Status LinearBf16Of16Lanes(OpContext& context, const LinearArgs& args) {
  return MultiplyBf16(context, args, kKernels);
}

Status LinearBf16ByTiles(OpContext& context, const LinearArgs& args) {
  return MultiplyBf16ByTiles(context, args, kBf16Tiles);
}

}  // namespace qserve::kernels::cpu::emulated
