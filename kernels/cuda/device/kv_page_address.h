// Addresses within one kv head's part of a page, see kv_page.h for the layout. Used by RopeAppend
// to write and by tests to read pages back.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/kv_page.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// Byte `byte` of the key share of lane c (0..3) of a token (0..63).
template <class Page>
QSERVE_DEVICE int KeyByte(int token, int c, int byte) {
  constexpr int kUnit = Page::kKeyUnit;
  return token / 16 * Page::kKeyTile + byte / kUnit * (64 * kUnit) +
         ((token % 16) * 4 + c) * kUnit + byte % kUnit;
}

// In a word of 8 int4 keys, the lowest bit of channel i; the bits go around the end.
QSERVE_DEVICE int KeyNibbleShift(int i) {
  constexpr uint32_t kFirst = 6u | 2u << 8 | 14u << 16 | 10u << 24;  // of channels 0, 2, 4, 6
  return static_cast<int>(kFirst >> (i / 2 * 8) & 0xffu) + i % 2 * 16;
}

// Where values of channels 2 * pair and 2 * pair + 1 of a token lie. int4: one byte with both;
// int8: two bytes; fp16: the first's two bytes, the second's are four bytes on.
template <class Page>
QSERVE_DEVICE int ValueByte(int token, int pair) {
  const int tile = Page::kValues + pair / 8 * Page::kValueTile;
  const int step = token / 16, high = token % 16 / 8, odd = token % 2;
  const int lane = pair % 8 * 4 + token % 8 / 2;
  if constexpr (Page::kBits == 4) return tile + lane * 16 + step * 4 + odd * 2 + high;
  if constexpr (Page::kBits == 8) {
    return tile + step / 2 * 512 + lane * 16 + step % 2 * 8 + high * 4 + odd * 2;
  }
  return tile + step * 512 + lane * 16 + high * 8 + odd * 2;
}

// The word with scale and minimum of a token's key or value.
template <class Page>
QSERVE_DEVICE int ParameterByte(int token, bool is_value) {
  return Page::kParameters + token / 16 * Page::kParameterTile + (is_value ? 64 : 0) +
         (token % 8 * 2 + token % 16 / 8) * 4;
}

}  // namespace qserve::kernels::cuda
