// The 16-lane value type that the fast floating-point operations are written over, and its plain
// implementation. Three structs have the same static members: emulated::Vec16 here (any
// architecture; the oracle of the interface), avx2::Vec16 (vec16_avx2.h) and avx512::Vec16
// (vec16_avx512.h). Included by the translation units of float_kernels_impl.h alone.
//
// F is 16 floats, I is 16 32-bit integers, M says which lanes. Every member is one correctly
// rounded operation per lane, or a reordering; nothing is fused but Fma. No functions of other
// headers are called, because these translation units are compiled with flags of their own and a
// linker may take any copy of an inline function.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/math.h"
#include "kernels/quant/half.h"
#include "kernels/types.h"

namespace qserve::kernels::cpu::emulated {

struct Vec16 {
  struct F {
    float v[16];
  };
  struct I {
    uint32_t v[16];
  };
  struct M {
    bool v[16];
  };

  template <class Function>
  static F Each(Function f) {
    F result;
    for (int i = 0; i < 16; ++i) result.v[i] = f(i);
    return result;
  }
  template <class Function>
  static I EachInt(Function f) {
    I result;
    for (int i = 0; i < 16; ++i) result.v[i] = f(i);
    return result;
  }

  static F Set(float x) {
    return Each([&](int) { return x; });
  }
  static F Load(const float* p) {
    return Each([&](int i) { return p[i]; });
  }
  static void Store(float* p, F x) { std::memcpy(p, x.v, sizeof(x.v)); }
  static F LoadHalf(const void* p) {
    uint16_t half[16];
    std::memcpy(half, p, sizeof(half));
    return Each([&](int i) { return HalfToFloat(half[i]); });
  }
  static void StoreHalf(void* p, F x) {
    uint16_t half[16];
    for (int i = 0; i < 16; ++i) half[i] = FloatToHalf(x.v[i]);
    std::memcpy(p, half, sizeof(half));
  }
  static F LoadBf16(const void* p) {
    uint16_t bits[16];
    std::memcpy(bits, p, sizeof(bits));
    return Each([&](int i) { return Bf16ToFloat(bits[i]); });
  }

  static F Add(F a, F b) {
    return Each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Sub(F a, F b) {
    return Each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F Mul(F a, F b) {
    return Each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Div(F a, F b) {
    return Each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F Fma(F a, F b, F c) {
    return Each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  // The second operand where one is NaN.
  static F Min(F a, F b) {
    return Each([&](int i) { return cpu::Min(a.v[i], b.v[i]); });
  }
  static F Max(F a, F b) {
    return Each([&](int i) { return cpu::Max(a.v[i], b.v[i]); });
  }
  static F Round(F a) {  // to nearest even
    return Each([&](int i) { return std::nearbyint(a.v[i]); });
  }

  static M Less(F a, F b) {
    M mask;
    for (int i = 0; i < 16; ++i) mask.v[i] = a.v[i] < b.v[i];
    return mask;
  }
  static M Equal(F a, F b) {
    M mask;
    for (int i = 0; i < 16; ++i) mask.v[i] = a.v[i] == b.v[i];
    return mask;
  }
  static bool AnyNan(F a) {
    bool any = false;
    for (const float x : a.v) any = any || x != x;
    return any;
  }
  static bool Any(M mask) {
    bool any = false;
    for (const bool lane : mask.v) any = any || lane;
    return any;
  }
  static M Between(int first, int last) {  // lanes first <= i < last
    M mask;
    for (int i = 0; i < 16; ++i) mask.v[i] = i >= first && i < last;
    return mask;
  }
  static F Select(M mask, F a, F b) {  // a where the mask is set
    return Each([&](int i) { return mask.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Keep(M mask, F a) {  // 0 elsewhere
    return Each([&](int i) { return mask.v[i] ? a.v[i] : 0.0f; });
  }
  static F KeepUnlessLess(F x, F limit, F a) {  // 0 where x < limit
    return Each([&](int i) { return x.v[i] < limit.v[i] ? 0.0f : a.v[i]; });
  }

  // Lanes i and i + 8, then i + 4, i + 2, i + 1.
  static float Total(F a) {
    LaneSum sum;
    std::memcpy(sum.lane, a.v, sizeof(a.v));
    return sum.Total();
  }
  static float Largest(F a) {
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) a.v[i] = cpu::Max(a.v[i], a.v[i + width]);
    }
    return a.v[0];
  }
  static float Least(F a) {
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) a.v[i] = cpu::Min(a.v[i], a.v[i + width]);
    }
    return a.v[0];
  }

  // Pieces of exp and log (math.h).
  static F PowerOfMagic(F shifted) {  // 2^n of n + kExpMagic
    return Each([&](int i) {
      return std::bit_cast<float>((std::bit_cast<uint32_t>(shifted.v[i]) << 23) + 0x3f800000u);
    });
  }
  static F SplitLog(F x,
                    F* mantissa) {  // x = 2^result * mantissa, mantissa in [sqrt(1/2), sqrt(2))
    return Each([&](int i) {
      const auto bits = std::bit_cast<int32_t>(x.v[i]);
      const int32_t exponent = (bits - kSqrtHalfBits) >> 23;
      mantissa->v[i] = std::bit_cast<float>(bits - exponent * (1 << 23));
      return static_cast<float>(exponent);
    });
  }

  // Magnitudes as integers: NaN is the largest.
  static I SetInt(uint32_t x) {
    return EachInt([&](int) { return x; });
  }
  static I MaxMagnitude(I largest, F x) {
    return EachInt([&](int i) {
      const uint32_t magnitude = std::bit_cast<uint32_t>(x.v[i]) & 0x7fffffffu;
      return magnitude > largest.v[i] ? magnitude : largest.v[i];
    });
  }
  static uint32_t LargestInt(I a) {
    uint32_t largest = 0;
    for (const uint32_t x : a.v) largest = x > largest ? x : largest;
    return largest;
  }

  // Stores whole numbers -127..127 as int8 and adds them to `sum`.
  static I StoreInt8(int8_t* p, F codes, I sum) {
    return EachInt([&](int i) {
      p[i] = static_cast<int8_t>(codes.v[i]);
      return sum.v[i] + static_cast<uint32_t>(static_cast<int32_t>(p[i]));
    });
  }
  static int32_t TotalInt(I a) {
    uint32_t total = 0;
    for (const uint32_t x : a.v) total += x;
    return static_cast<int32_t>(total);
  }

  static void StoreBytes(uint8_t* p, F codes) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(codes.v[i]);
  }

  // What attention's products are made of (attention_product.h): one register of kRegisterLanes
  // floats. A tile is 1..6 queries times at most TileRegisters(queries) registers of a panel.
  using R = F;
  static constexpr int kRegisterLanes = 16;
  static constexpr int TileRegisters(int) { return 4; }
  static R Zero() { return Set(0.0f); }
  static R Spread(const float* p) { return Set(*p); }
  static R MulAdd(R a, R b, R c) { return Fma(a, b, c); }
  static R Times(R a, R b) { return Mul(a, b); }
  static void Put(float* p, R x) { Store(p, x); }
  static R GetFloats(const uint8_t* p) { return Load(reinterpret_cast<const float*>(p)); }
  static R GetHalves(const uint8_t* p) { return LoadHalf(p); }
  static R GetBytes(const uint8_t* p) {
    return Each([&](int i) { return static_cast<float>(p[i]); });
  }
  // The eight words of a panel of 64 int4 codes (kv_page.h) from `byte` on, or of 32. Only the two
  // lower bytes of a word are used.
  struct Words {
    uint32_t v[8];
  };
  template <bool kWide>
  static Words GetWords(const uint8_t* panel, int byte) {
    Words words;
    for (int i = 0; i < 8; ++i) {
      const uint8_t* p = kWide ? panel + 4 * i + byte : panel + 2 * i;
      words.v[i] = p[0] | uint32_t{p[1]} << 8;
    }
    return words;
  }
  // Register kIndex of the panel, codes times their places. `high` are the words two bytes on,
  // which hold the upper four nibbles.
  template <int kIndex>
  static R GetNibbles(const Words& low, const Words& high) {
    return Each([&](int i) {
      const int code = kIndex * 16 + i, nibble = code / 8 % 4;
      const Words& words = kIndex < 2 ? low : high;
      return static_cast<float>(words.v[code % 8] & (15u << (4 * nibble)));
    });
  }
  template <int kIndex>
  static R InversePlaces() {
    return Each([](int i) {
      const int nibble = (kIndex * 16 + i) / 8 % 4;
      return 1.0f / static_cast<float>(1 << (4 * nibble));
    });
  }

  // Pieces of Philox.
  static I Counters(uint32_t first) {  // first + lane
    return EachInt([&](int i) { return first + static_cast<uint32_t>(i); });
  }
  static I Xor(I a, I b) {
    return EachInt([&](int i) { return a.v[i] ^ b.v[i]; });
  }
  static I MulWide(I a, uint32_t factor, I* high) {  // low halves
    return EachInt([&](int i) {
      const uint64_t product = uint64_t{a.v[i]} * factor;
      high->v[i] = static_cast<uint32_t>(product >> 32);
      return static_cast<uint32_t>(product);
    });
  }
  static F Uniform(I bits) {  // ((bits >> 9) + 1/2) / 2^23
    return Each([&](int i) { return (static_cast<float>(bits.v[i] >> 9) + 0.5f) * 0x1p-23f; });
  }
};

}  // namespace qserve::kernels::cpu::emulated
