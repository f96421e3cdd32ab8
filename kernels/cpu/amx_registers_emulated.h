// AMX's tile registers as arrays, every instruction a loop: what amx_emulated.cc (int8) and
// bf16_emulated.cc share, each of which adds its Dot. For tests anywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/amx_panel.h"

namespace qserve::kernels::cpu::emulated {

// See amx_tile.h for the members.
class AmxRegisters {
 public:
  static void Configure() {}
  static void Release() {}

  template <int kTile>
  void Zero() {
    std::memset(tile_[kTile], 0, kTileBytes);
  }
  template <int kTile>
  void Load(const void* from, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
      std::memcpy(tile_[kTile][row], static_cast<const uint8_t*>(from) + row * stride, 64);
  }
  template <int kTile>
  void Store(void* to, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
      std::memcpy(static_cast<uint8_t*>(to) + row * stride, tile_[kTile][row], 64);
  }

 protected:
  int8_t tile_[8][16][64];
};

}  // namespace qserve::kernels::cpu::emulated
