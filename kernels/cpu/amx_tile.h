// The leaf functions of the linears by tiles, written once: over T, the tile registers, and V, a
// vector of 64 bytes. Included by linear_avx512amx.cc (instructions) and amx_emulated.cc (loops),
// whose T and V have internal linkage, so that the instantiations have too.
//
// T: Zero, Load, Store of one of 8 tiles, and Dot: tile C [16][16] int32 += A [16][64] x B
// [16][16][4], int8 by int8. V: Int; Load, Store, Low, High (4-bit codes as bytes); Scale, Offset
// of 16 rows, each for the four bytes of its row, and Scaled (code * scale + offset, modulo 256).
#pragma once

#include <cstdint>

#include "kernels/cpu/amx_panel.h"

namespace qserve::kernels::cpu {

template <class V, bool kGroup>
void UnpackTiles(const UnpackArgs& args) {
  constexpr int kBlocks = 16;               // of 8 columns in a group
  constexpr int64_t kPrefetchBytes = 4096;  // as far as the next 512 columns of the panel
  const uint8_t* codes = args.codes;
  int8_t* to = args.to;
  for (int64_t g = 0; g < args.groups; ++g) {
    typename V::Int scale = {};
    typename V::Int offset = {};
    if constexpr (kGroup) {
      scale = V::Scale(args.scales + g * kPanelRows);
      offset = V::Offset(args.offsets + g / 2 * kPanelRows * 2, g % 2 != 0);
    }
    for (int block = 0; block < kBlocks; ++block, codes += 64, to += 128) {
      V::Prefetch(codes + kPrefetchBytes);
      const typename V::Int both = V::Load(codes);
      typename V::Int low = V::Low(both);
      typename V::Int high = V::High(both);
      if constexpr (kGroup) {
        low = V::Scaled(low, scale, offset);
        high = V::Scaled(high, scale, offset);
      }
      V::Store(to, low);
      V::Store(to + 64, high);
    }
  }
}

// Tiles 0 and 1: sums of the first 16 tokens with either panel; 2 and 3: of the next 16 tokens; 4
// and 5: x; 6 and 7: weights.
template <class T, int kTokenTiles>
void MultiplyTiles(const TileProduct& p) {
  constexpr int64_t kSumStride = 2 * kPanelRows * 4;
  int32_t* next = p.c + kTileTokens * 2 * kPanelRows;
  T tiles;
  if (p.add) {
    tiles.template Load<0>(p.c, kSumStride);
    tiles.template Load<1>(p.c + kPanelRows, kSumStride);
    if constexpr (kTokenTiles == 2) {
      tiles.template Load<2>(next, kSumStride);
      tiles.template Load<3>(next + kPanelRows, kSumStride);
    }
  } else {
    tiles.template Zero<0>();
    tiles.template Zero<1>();
    if constexpr (kTokenTiles == 2) {
      tiles.template Zero<2>();
      tiles.template Zero<3>();
    }
  }
  const int8_t* x = p.x;
  const int8_t* w = p.w;
  for (int64_t step = 0; step < p.steps; ++step, x += kTileBytes, w += kTileBytes) {
    tiles.template Load<4>(x, kTileColumns);
    tiles.template Load<6>(w, kTileColumns);
    tiles.template Dot<0, 4, 6>();
    tiles.template Load<7>(w + p.w_bytes, kTileColumns);
    tiles.template Dot<1, 4, 7>();
    if constexpr (kTokenTiles == 2) {
      tiles.template Load<5>(x + p.x_bytes, kTileColumns);
      tiles.template Dot<2, 5, 6>();
      tiles.template Dot<3, 5, 7>();
    }
  }
  tiles.template Store<0>(p.c, kSumStride);
  tiles.template Store<1>(p.c + kPanelRows, kSumStride);
  if constexpr (kTokenTiles == 2) {
    tiles.template Store<2>(next, kSumStride);
    tiles.template Store<3>(next + kPanelRows, kSumStride);
  }
}

template <class T>
constexpr TileFunctions MakeTileFunctions() {
  return {.configure = &T::Configure,
          .release = &T::Release,
          .multiply = {nullptr, &MultiplyTiles<T, 1>, &MultiplyTiles<T, 2>}};
}

template <class T, class V>
constexpr TileKernels MakeTileKernels(decltype(TileKernels::epilogue) epilogue,
                                      decltype(TileKernels::without_tiles) without_tiles) {
  return {MakeTileFunctions<T>(), &UnpackTiles<V, false>, &UnpackTiles<V, true>, epilogue,
          without_tiles};
}

}  // namespace qserve::kernels::cpu
