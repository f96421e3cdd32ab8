// From stored words to fp16 operands of mma.m16n8k16, and the corrections that the forms need. Part
// of attention_kernel.h; kv_page.h has the layout.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/kv_page.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// kWords (1, 2 or 4) words, aligned to their size.
template <int kWords>
QSERVE_DEVICE void LoadWords(const uint8_t* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    const Vec16 v = Load16(from);
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
  } else if constexpr (kWords == 2) {
    struct alignas(8) Pair {
      uint32_t x, y;
    };
    const Pair pair = *reinterpret_cast<const Pair*>(from);
    words[0] = pair.x;
    words[1] = pair.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// (a & mask) | bits.
QSERVE_DEVICE uint32_t MaskOr(uint32_t a, uint32_t mask, uint32_t bits) {
  return Lop3<0xea>(a, mask, bits);
}

// Keys keep a bias: what is multiplied is code + Low(channels 4i, 4i + 1) or + High (4i + 2, 4i +
// 3); fp16 keys have none.
template <class Page>
struct KeyOperand {
  static constexpr float kLowBias = Page::kBits == 4 ? 16.0f : Page::kBits == 8 ? 1024.0f : 0.0f;
  static constexpr float kHighBias = Page::kBits == 4 ? 256.0f : Page::kBits == 8 ? 1024.0f : 0.0f;
  static constexpr int kUnitWords = Page::kKeyUnit / 4;
  static constexpr int kUnitSteps = Page::kKeyUnit * 8 / (4 * Page::kBits);

  // The operand words of one token for step `step` of a unit.
  static QSERVE_DEVICE void Expand(const uint32_t (&words)[kUnitWords], int step, uint32_t* low,
                                   uint32_t* high) {
    if constexpr (Page::kBits == 4) {
      const uint32_t word = words[step / 2];
      const uint32_t turned = step % 2 == 0 ? word : BytePermute(word, word, 0x0321);
      *low = MaskOr(turned, 0x03c003c0u, 0x4c004c00u);
      *high = MaskOr(turned, 0x003c003cu, 0x5c005c00u);
    } else if constexpr (Page::kBits == 8) {
      *low = BytePermute(words[step], 0x64646464u, 0x4140);
      *high = BytePermute(words[step], 0x64646464u, 0x4342);
    } else {
      *low = words[2 * step];
      *high = words[2 * step + 1];
    }
  }
};

// Values are multiplied as codes, without a bias.
template <class Page>
struct ValueOperand {
  static constexpr int kWords = Page::kBits == 16 ? 8 : 4;  // that Load holds

  // From a tile in shared memory, before steps 2 * pair and the next. int4: of all four at once.
  static QSERVE_DEVICE void Load(const uint8_t* tile, int lane, int pair,
                                 uint32_t (&words)[kWords]) {
    if (Page::kBits == 4 && pair > 0) return;
    QSERVE_UNROLL
    for (int i = 0; i < kWords / 4; ++i) {
      const Vec16 v = Load16(tile + (pair * (kWords / 4) + i) * 512 + lane * 16);
      words[4 * i] = v.x;
      words[4 * i + 1] = v.y;
      words[4 * i + 2] = v.z;
      words[4 * i + 3] = v.w;
    }
  }

  static QSERVE_DEVICE void Expand(const uint32_t (&words)[kWords], int step, uint32_t (&a)[4]) {
    if constexpr (Page::kBits == 4) {
      const uint32_t first = words[step], second = first >> 8;
      a[0] = HalfPairSub(MaskOr(first, 0x000f000fu, 0x64006400u), 0x64006400u);
      a[1] = HalfPairSub(MaskOr(first, 0x00f000f0u, 0x54005400u), 0x54005400u);
      a[2] = HalfPairSub(MaskOr(second, 0x000f000fu, 0x64006400u), 0x64006400u);
      a[3] = HalfPairSub(MaskOr(second, 0x00f000f0u, 0x54005400u), 0x54005400u);
    } else if constexpr (Page::kBits == 8) {
      QSERVE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = words[2 * (step % 2) + half];
        a[2 * half] = HalfPairSub(BytePermute(word, 0x64646464u, 0x4240), 0x64006400u);
        a[2 * half + 1] = HalfPairSub(BytePermute(word, 0x64646464u, 0x4341), 0x64006400u);
      }
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = words[4 * (step % 2) + i];
    }
  }
};

// Weights of quantized values are p * scale, times this so that fp16 has them as normal numbers;
// they saturate where scale * kWeightBoost exceeds fp16, which is a range of 15,000 and more.
template <class Page>
inline constexpr float kWeightBoost = Page::kBits == 4   ? 64.0f
                                      : Page::kBits == 8 ? 1024.0f
                                                         : 1.0f;

QSERVE_DEVICE float LowHalf(uint32_t pair) {
  return HalfBitsToFloat(static_cast<uint16_t>(pair & 0xffffu));
}
QSERVE_DEVICE float HighHalf(uint32_t pair) {
  return HalfBitsToFloat(static_cast<uint16_t>(pair >> 16));
}

}  // namespace qserve::kernels::cuda
