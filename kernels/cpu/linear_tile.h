// The leaf functions of the fast linears, written once over a vector type V and instantiated by
// each instruction set's translation unit (V has internal linkage there, so the instantiations have
// too). A unit of rows is two vectors of V::kLanes rows; each 32-bit lane holds four columns of one
// row, against which four columns of a token are broadcast.
//
// V provides: Int, Float, kLanes; kChunkBlocks, the blocks of 8 columns that Dot may add up before
// Flush; Load, Store, Low, High (4-bit codes as bytes), Broadcast, Dot, Scale, One, Flush (c +=
// accumulated * scale); Prepare8 and Dot8, Flush8 for 8-bit codes; and the few operations of the
// epilogue.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_panel.h"

namespace qserve::kernels::cpu {

inline constexpr int kGroupBlocks = 16;  // blocks of 8 columns in a group of 128
// Of a panel: 8 columns of 16 4-bit rows, or 4 columns of 16 8-bit rows.
inline constexpr int kBlockBytes = 64;

// How far ahead of its use a panel is asked for: a single token's pass is bound by memory.
inline constexpr int kPrefetchBytes = 2048;

// Four columns against every token of a tile.
template <class V, int kTokens>
inline void DotTokens(typename V::Int (&acc)[kTokens][2], typename V::Int w0, typename V::Int w1,
                      const int8_t* x) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const typename V::Int xs = V::Broadcast(x + t * 4);
    acc[t][0] = V::Dot(acc[t][0], w0, xs);
    acc[t][1] = V::Dot(acc[t][1], w1, xs);
  }
}

// What a tile does about codes: takes them apart, does so and leaves the result to others
// (TileArgs::expanded), or finds it.
enum class Codes { kPacked, kLeave, kFind };

// The codes of four columns of a unit at `at`, taken apart.
template <class V, Codes kCodes>
inline void LeaveOrNot(uint8_t* at, int64_t panel_bytes, typename V::Int w0, typename V::Int w1) {
  if constexpr (kCodes != Codes::kLeave) return;
  V::Store(at, panel_bytes, 0, w0);
  V::Store(at, panel_bytes, 1, w1);
}

template <class V, bool kGroup, Codes kCodes, int kTokens>
void TileW4(const TileArgs& args) {
  using Int = typename V::Int;
  constexpr int kUnitRows = 2 * V::kLanes;
  const uint8_t* codes = args.codes;
  uint8_t* bytes = args.expanded;
  const int64_t byte_stride = args.expanded_panel_bytes;
  const int8_t* x = args.x;
  for (int64_t g = 0; g < args.groups; ++g) {
    const uint8_t* scales = kGroup ? args.scales + g * kPanelRows : nullptr;
    const Int scale0 = kGroup ? V::Scale(scales, args.scale_bytes, 0) : V::One();
    const Int scale1 = kGroup ? V::Scale(scales, args.scale_bytes, 1) : V::One();
    for (int chunk = 0; chunk < kGroupBlocks / V::kChunkBlocks; ++chunk) {
      Int acc[kTokens][2] = {};
#pragma GCC unroll 4
      for (int block = 0; block < V::kChunkBlocks; ++block) {
        if constexpr (kCodes == Codes::kFind) {
          DotTokens<V, kTokens>(acc, V::Load(bytes, byte_stride, 0), V::Load(bytes, byte_stride, 1),
                                x);
          bytes += kBlockBytes;
          DotTokens<V, kTokens>(acc, V::Load(bytes, byte_stride, 0), V::Load(bytes, byte_stride, 1),
                                x + kTokens * 4);
        } else {
          if constexpr (kTokens <= 2 || kCodes == Codes::kLeave)
            V::Prefetch(codes + kPrefetchBytes, args.panel_bytes);
          const Int both0 = V::Load(codes, args.panel_bytes, 0);
          const Int both1 = V::Load(codes, args.panel_bytes, 1);
          LeaveOrNot<V, kCodes>(bytes, byte_stride, V::Low(both0), V::Low(both1));
          DotTokens<V, kTokens>(acc, V::Low(both0), V::Low(both1), x);
          bytes += kBlockBytes;
          LeaveOrNot<V, kCodes>(bytes, byte_stride, V::High(both0), V::High(both1));
          DotTokens<V, kTokens>(acc, V::High(both0), V::High(both1), x + kTokens * 4);
          codes += kBlockBytes;
        }
        bytes += kBlockBytes;
        x += 2 * kTokens * 4;
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        V::Flush(args.c + t * kUnitRows, acc[t][0], scale0, kGroup);
        V::Flush(args.c + t * kUnitRows + V::kLanes, acc[t][1], scale1, kGroup);
      }
    }
  }
}

template <class V, int kTokens>
void TileW8(const TileArgs& args) {
  constexpr int kUnitRows = 2 * V::kLanes;
  const uint8_t* codes = args.codes;
  const int8_t* x = args.x;
  typename V::Int acc[kTokens][2] = {};
  for (int64_t block = 0; block < args.groups * 2 * kGroupBlocks; ++block) {
    if constexpr (kTokens <= 2) V::Prefetch(codes + kPrefetchBytes, args.panel_bytes);
    const typename V::Codes8 w0 = V::Prepare8(V::Load(codes, args.panel_bytes, 0));
    const typename V::Codes8 w1 = V::Prepare8(V::Load(codes, args.panel_bytes, 1));
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const typename V::Int xs = V::Broadcast(x + t * 4);
      acc[t][0] = V::Dot8(acc[t][0], w0, xs);
      acc[t][1] = V::Dot8(acc[t][1], w1, xs);
    }
    x += kTokens * 4;
    codes += kBlockBytes;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    V::Flush8(args.c + t * kUnitRows, acc[t][0]);
    V::Flush8(args.c + t * kUnitRows + V::kLanes, acc[t][1]);
  }
}

// Two columns against every token of a tile: codes and x as int16.
template <class V, int kTokens>
inline void DotTokensWide(typename V::Int (&acc)[kTokens][2], typename V::Int w0,
                          typename V::Int w1, const int8_t* x) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const typename V::Int xs = V::Broadcast(x + t * 8);
    acc[t][0] = V::DotWide(acc[t][0], w0, xs);
    acc[t][1] = V::DotWide(acc[t][1], w1, xs);
  }
}

// 8-bit codes widened to int16: of each four columns the even ones of 16 rows, then the odd ones,
// as EvenColumns and OddColumns make them. x: [groups * 32][tokens][columns 0, 2, 1, 3] int16.
template <class V, Codes kCodes, int kTokens>
void TileWide(const TileArgs& args) {
  using Int = typename V::Int;
  constexpr int kUnitRows = 2 * V::kLanes;
  const uint8_t* codes = args.codes;
  uint8_t* wide = args.expanded;
  const int64_t wide_stride = args.expanded_panel_bytes;
  const int8_t* x = args.x;
  Int acc[kTokens][2] = {};
  for (int64_t block = 0; block < args.groups * 2 * kGroupBlocks; ++block) {
    if constexpr (kCodes == Codes::kFind) {
      DotTokensWide<V, kTokens>(acc, V::Load(wide, wide_stride, 0), V::Load(wide, wide_stride, 1),
                                x);
      wide += kBlockBytes;
      DotTokensWide<V, kTokens>(acc, V::Load(wide, wide_stride, 0), V::Load(wide, wide_stride, 1),
                                x + 4);
    } else {
      V::Prefetch(codes + kPrefetchBytes, args.panel_bytes);
      const Int four0 = V::Load(codes, args.panel_bytes, 0);
      const Int four1 = V::Load(codes, args.panel_bytes, 1);
      const Int even0 = V::EvenColumns(four0), even1 = V::EvenColumns(four1);
      LeaveOrNot<V, kCodes>(wide, wide_stride, even0, even1);
      DotTokensWide<V, kTokens>(acc, even0, even1, x);
      wide += kBlockBytes;
      const Int odd0 = V::OddColumns(four0), odd1 = V::OddColumns(four1);
      LeaveOrNot<V, kCodes>(wide, wide_stride, odd0, odd1);
      DotTokensWide<V, kTokens>(acc, odd0, odd1, x + 4);
      codes += kBlockBytes;
    }
    wide += kBlockBytes;
    x += kTokens * 8;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    V::Flush8(args.c + t * kUnitRows, acc[t][0]);
    V::Flush8(args.c + t * kUnitRows + V::kLanes, acc[t][1]);
  }
}

// scale_x * (scale * float(acc) [- scaled_zero * float(row_sum)]) [+ bias], each operation rounded,
// as backend.h says.
template <class V>
typename V::Float Output(const EpilogueArgs& e, typename V::Int acc, int token, int row) {
  typename V::Float y = V::Mul(V::LoadFloat(e.scale + row), V::ToFloat(acc));
  if (e.scaled_zero != nullptr) {
    const typename V::Float sum = V::BroadcastFloat(static_cast<float>(e.row_sum[token]));
    y = V::Sub(y, V::Mul(V::LoadFloat(e.scaled_zero + row), sum));
  }
  y = V::Mul(V::BroadcastFloat(e.x_scale[token]), y);
  return e.bias == nullptr ? y : V::Add(y, V::LoadFloat(e.bias + row));
}

// c += the sum over groups of offset * (sum of the token's codes in the group), two groups at a
// time, for kTokens tokens from `first`, which share the reading of the offsets.
template <class V, int kTokens>
void AddOffsets(const EpilogueArgs& e, int first) {
  constexpr int kUnitRows = 2 * V::kLanes;
  const int16_t* low = e.offsets;
  const int16_t* high =
      e.offsets + V::kLanes / kPanelRows * e.offset_count + V::kLanes % kPanelRows * 2;
  int32_t* c = e.c + first * kUnitRows;
  typename V::Int acc[kTokens][2] = {};
  for (int64_t pair = 0; pair < e.group_pairs; ++pair) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const int16_t* sums = e.x_sums + ((first + t) * e.group_pairs + pair) * 2;
      acc[t][0] = V::AddPairs(acc[t][0], low + pair * kPanelRows * 2, sums);
      acc[t][1] = V::AddPairs(acc[t][1], high + pair * kPanelRows * 2, sums);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    V::Flush8(c + t * kUnitRows, acc[t][0]);
    V::Flush8(c + t * kUnitRows + V::kLanes, acc[t][1]);
  }
}

template <class V>
void Epilogue(const EpilogueArgs& e) {
  constexpr int kUnitRows = 2 * V::kLanes;
  if (e.offsets != nullptr) {
    int first = 0;
    for (; first + 4 <= e.tokens; first += 4) AddOffsets<V, 4>(e, first);
    for (; first < e.tokens; ++first) AddOffsets<V, 1>(e, first);
  }
  for (int t = 0; t < e.tokens; ++t) {
    float partial[kUnitRows];
    const bool whole = e.rows == kUnitRows;
    float* out = whole ? e.out + t * e.out_stride : partial;
    for (int row = 0; row < kUnitRows; row += V::kLanes) {
      typename V::Int acc = V::LoadInt(e.c + t * kUnitRows + row);
      if (e.row_sum_factor != 0)
        acc = V::AddInt(acc, V::BroadcastInt(e.row_sum_factor * e.row_sum[t]));
      V::StoreFloat(out + row, Output<V>(e, acc, t, row));
    }
    if (whole) continue;
    for (int64_t row = 0; row < e.rows; ++row) e.out[t * e.out_stride + row] = partial[row];
  }
}

// fp16 rows x fp32 tokens. H is 16 lanes of fp32: Zero, LoadHalf, LoadFloat, MultiplyAdd, and Sum
// in the fixed order.
template <class H, int kRows, int kTokens>
void HalfTile(const HalfArgs& a, int64_t row, int64_t token) {
  typename H::Lanes acc[kRows][kTokens];
#pragma GCC unroll 8
  for (int i = 0; i < kRows * kTokens; ++i) acc[i / kTokens][i % kTokens] = H::Zero();
  const uint16_t* w = a.w + row * a.k16;
  const float* x = a.x + token * a.k16;
  for (int64_t k = 0; k < a.k16; k += 16) {
    typename H::Lanes rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      rows[r] = H::LoadHalf(w + r * a.k16 + k);
      // The same place in the next rows, which are as long: short rows are no stream to the
      // hardware.
      if constexpr (kTokens == 1) H::Prefetch(w + (r + kRows) * a.k16 + k);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const typename H::Lanes xs = H::LoadFloat(x + t * a.k16 + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][t] = H::MultiplyAdd(rows[r], xs, acc[r][t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      float y = H::Sum(acc[r][t]);
      if (a.bias != nullptr) y += a.bias[row + r];
      a.out[(token + t) * a.out_stride + row + r] = y;
    }
  }
}

// All rows of a panel for one tile of tokens: the tile's x stays in the first-level cache.
template <class H, int kTokens>
void HalfTokens(const HalfArgs& a, int64_t token) {
  constexpr int kRows = kTokens == 1 ? 4 : 2;
  int64_t row = 0;
  for (; row + kRows <= a.rows; row += kRows) HalfTile<H, kRows, kTokens>(a, row, token);
  for (; row < a.rows; ++row) HalfTile<H, 1, kTokens>(a, row, token);
}

template <class H>
void HalfPanel(const HalfArgs& a) {
  int64_t token = 0;
  for (; token + 3 <= a.tokens; token += 3) HalfTokens<H, 3>(a, token);
  if (token + 2 == a.tokens) HalfTokens<H, 2>(a, token);
  if (token + 1 == a.tokens) HalfTokens<H, 1>(a, token);
}

template <class V, int kTokens>
constexpr void SetW4Tiles(PanelKernels& k) {
  k.w4_channel[kTokens] = &TileW4<V, false, Codes::kPacked, kTokens>;
  k.w4_group[kTokens] = &TileW4<V, true, Codes::kPacked, kTokens>;
  if constexpr (kTokens > 1) SetW4Tiles<V, kTokens - 1>(k);
}
template <class V, bool kGroup, int kTokens>
constexpr void SetExpandedTiles(Expanded& way) {
  if (way.tokens == 0) way.tokens = way.more_than = kTokens;
  way.first[kTokens] = &TileW4<V, kGroup, Codes::kLeave, kTokens>;
  way.next[kTokens] = &TileW4<V, kGroup, Codes::kFind, kTokens>;
  if constexpr (kTokens > 1) SetExpandedTiles<V, kGroup, kTokens - 1>(way);
}
template <class V, int kTokens>
constexpr void SetW8Tiles(PanelKernels& k) {
  k.w8[kTokens] = &TileW8<V, kTokens>;
  if constexpr (kTokens > 1) SetW8Tiles<V, kTokens - 1>(k);
}
template <class V, int kTokens>
constexpr void SetWideTiles(Expanded& way) {
  if (way.tokens == 0) way.tokens = kTokens;
  way.more_than = 2 * way.tokens;  // the first tile is slow
  way.code_bytes = 2;
  way.first[kTokens] = &TileWide<V, Codes::kLeave, kTokens>;
  way.next[kTokens] = &TileWide<V, Codes::kFind, kTokens>;
  if constexpr (kTokens > 1) SetWideTiles<V, kTokens - 1>(way);
}

// 8-bit codes by way of int16, for an instruction set without an 8-bit dot product.
template <class V, int kTokens>
constexpr PanelKernels WithWideCodes(PanelKernels k) {
  SetWideTiles<V, kTokens>(k.expanded_w8);
  return k;
}

// The table of an instruction set, all tiles of up to kW4 and kW8 tokens, of up to kExpanded where
// there are several.
template <class V, class H, int kW4, int kExpanded, int kW8>
constexpr PanelKernels MakePanelKernels() {
  PanelKernels k;
  k.unit_panels = 2 * V::kLanes / static_cast<int>(kPanelRows);
  k.tokens_w4 = kW4;
  k.tokens_w8 = kW8;
  k.biased_w8 = V::kBiased8;
  SetW4Tiles<V, kW4>(k);
  SetExpandedTiles<V, false, kExpanded>(k.expanded_w4_channel);
  SetExpandedTiles<V, true, kExpanded>(k.expanded_w4_group);
  SetW8Tiles<V, kW8>(k);
  k.group_sums = &V::GroupSums;
  k.epilogue = &Epilogue<V>;
  k.half = &HalfPanel<H>;
  return k;
}

}  // namespace qserve::kernels::cpu
