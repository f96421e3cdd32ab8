// 16 lanes as one AVX512 register; needs F, BW, VL and DQ. See vec16.h for the members. Included by
// float_kernels_avx512.cc alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/math.h"

namespace qserve::kernels::cpu::avx512 {

struct Vec16 {
  struct F {
    __m512 v;
  };
  struct I {
    __m512i v;
  };
  struct M {
    __mmask16 v;
  };

  static F Set(float x) { return {_mm512_set1_ps(x)}; }
  static F Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
  static __m256i Load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static F LoadHalf(const void* p) { return {_mm512_cvtph_ps(Load256(p))}; }
  static void StoreHalf(void* p, F x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F LoadBf16(const void* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Load256(p)), 16))};
  }

  static F Add(F x, F y) { return {_mm512_add_ps(x.v, y.v)}; }
  static F Sub(F x, F y) { return {_mm512_sub_ps(x.v, y.v)}; }
  static F Mul(F x, F y) { return {_mm512_mul_ps(x.v, y.v)}; }
  static F Div(F x, F y) { return {_mm512_div_ps(x.v, y.v)}; }
  static F Fma(F x, F y, F z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
  static F Min(F x, F y) { return {_mm512_min_ps(x.v, y.v)}; }
  static F Max(F x, F y) { return {_mm512_max_ps(x.v, y.v)}; }
  static F Round(F x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }

  static M Less(F x, F y) { return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ)}; }
  static bool Any(M mask) { return mask.v != 0; }
  static M Equal(F x, F y) { return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_EQ_OQ)}; }
  static bool AnyNan(F x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q) != 0; }
  static M Between(int first, int last) {  // 0 <= first, last <= 16
    return {static_cast<__mmask16>(((1u << last) - 1u) & ~((1u << first) - 1u))};
  }
  static F Select(M mask, F x, F y) { return {_mm512_mask_blend_ps(mask.v, y.v, x.v)}; }
  static F Keep(M mask, F x) { return {_mm512_maskz_mov_ps(mask.v, x.v)}; }
  static F KeepUnlessLess(F x, F limit, F y) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), y.v)};
  }

  static __m256 Low(__m512 x) { return _mm512_castps512_ps256(x); }
  static __m256 High(__m512 x) { return _mm512_extractf32x8_ps(x, 1); }
  static float Total(F x) {
    const __m256 eight = _mm256_add_ps(Low(x.v), High(x.v));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float Largest(F x) {
    const __m256 eight = _mm256_max_ps(Low(x.v), High(x.v));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float Least(F x) {
    const __m256 eight = _mm256_min_ps(Low(x.v), High(x.v));
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
  }

  static F PowerOfMagic(F shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f800000)))};
  }
  static F SplitLog(F x, F* mantissa) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i exponent =
        _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(kSqrtHalfBits)), 23);
    mantissa->v = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
    return {_mm512_cvtepi32_ps(exponent)};
  }

  static I SetInt(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static I MaxMagnitude(I largest, F x) {
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
    return {_mm512_max_epu32(largest.v, magnitude)};
  }
  static uint32_t LargestInt(I x) { return static_cast<uint32_t>(_mm512_reduce_max_epu32(x.v)); }

  static I StoreInt8(int8_t* p, F codes, I sum) {
    const __m512i whole = _mm512_cvtps_epi32(codes.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(whole));
    return {_mm512_add_epi32(sum.v, whole)};
  }
  static int32_t TotalInt(I x) { return _mm512_reduce_add_epi32(x.v); }

  static void StoreBytes(uint8_t* p, F codes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(codes.v)));
  }

  using R = __m512;
  static constexpr int kRegisterLanes = 16;
  static constexpr int TileRegisters(int) { return 4; }  // with 6 queries 24 of 32 hold sums
  static R Zero() { return _mm512_setzero_ps(); }
  static R Spread(const float* p) { return _mm512_set1_ps(*p); }
  static R MulAdd(R x, R y, R z) { return _mm512_fmadd_ps(x, y, z); }
  static R Times(R x, R y) { return _mm512_mul_ps(x, y); }
  static void Put(float* p, R x) { _mm512_storeu_ps(p, x); }
  static R GetFloats(const uint8_t* p) { return _mm512_loadu_ps(p); }
  static R GetHalves(const uint8_t* p) { return _mm512_cvtph_ps(Load256(p)); }
  static R GetBytes(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
  }
  // `low` in lanes 0-7, `high` in lanes 8-15.
  static __m512i Halves(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
  }
  // The eight words of a panel of 64 int4 codes from `byte` on, or of 32; in both halves.
  using Words = __m512i;
  template <bool kWide>
  static Words GetWords(const uint8_t* panel, int byte) {
    if constexpr (kWide) return _mm512_broadcast_i64x4(Load256(panel + byte));
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel));
    return _mm512_broadcast_i64x4(_mm256_cvtepu16_epi32(words));
  }
  // Register kIndex of the panel, codes times their places; each half keeps a nibble of its own.
  // `high` are the words two bytes on, whose lower halves hold the upper four nibbles.
  template <int kIndex>
  static R GetNibbles(Words low, Words high) {
    constexpr int kLow = 15 << (kIndex % 2 * 8);
    return _mm512_cvtepi32_ps(_mm512_and_si512(kIndex < 2 ? low : high, Halves(kLow, kLow << 4)));
  }
  template <int kIndex>
  static R InversePlaces() {
    constexpr float kLow = 1.0f / (1 << (kIndex % 2 * 8));
    return _mm512_insertf32x8(_mm512_set1_ps(kLow), _mm256_set1_ps(kLow / 16), 1);
  }

  static I Counters(uint32_t first) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)))};
  }
  static I Xor(I x, I y) { return {_mm512_xor_si512(x.v, y.v)}; }
  static I MulWide(I x, uint32_t factor, I* high) {
    const __m512i f = _mm512_set1_epi32(static_cast<int>(factor));
    const __m512i even = _mm512_mul_epu32(x.v, f);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x.v, 32), f);
    high->v = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    return {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))};
  }
  static F Uniform(I bits) {
    const F whole = {_mm512_cvtepi32_ps(_mm512_srli_epi32(bits.v, 9))};
    return Mul(Add(whole, Set(0.5f)), Set(0x1p-23f));
  }
};

}  // namespace qserve::kernels::cpu::avx512
