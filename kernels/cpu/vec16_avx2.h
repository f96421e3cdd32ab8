// 16 lanes as two AVX2 registers; needs FMA and F16C. See vec16.h for the members. Included by
// float_kernels_avx2.cc alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/math.h"

namespace qserve::kernels::cpu::avx2 {

struct Vec16 {
  struct F {
    __m256 a, b;  // lanes 0-7, 8-15
  };
  struct I {
    __m256i a, b;
  };
  struct M {
    __m256 a, b;
  };

  static F Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void Store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static __m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static F LoadHalf(const void* p) {
    const auto* half = static_cast<const uint16_t*>(p);
    return {_mm256_cvtph_ps(Load128(half)), _mm256_cvtph_ps(Load128(half + 8))};
  }
  static void StoreHalf(void* p, F x) {
    auto* out = static_cast<__m128i*>(p);
    _mm_storeu_si128(out, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
  }
  static F LoadBf16(const void* p) {
    const auto* bits = static_cast<const uint16_t*>(p);
    const __m256i a = _mm256_cvtepu16_epi32(Load128(bits));
    const __m256i b = _mm256_cvtepu16_epi32(Load128(bits + 8));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  }

  static F Add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F Sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F Mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F Div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F Fma(F x, F y, F z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static F Min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F Max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F Round(F x) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
  }

  static M Less(F x, F y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
  }
  static bool Any(M mask) { return _mm256_movemask_ps(_mm256_or_ps(mask.a, mask.b)) != 0; }
  static M Equal(F x, F y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
  }
  static bool AnyNan(F x) {
    return Any({_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)});
  }
  static __m256 HalfBetween(__m256i lanes, int first, int last) {
    const __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(first - 1));
    const __m256i to = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lanes);
    return _mm256_castsi256_ps(_mm256_and_si256(from, to));
  }
  static M Between(int first, int last) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {HalfBetween(lanes, first, last),
            HalfBetween(_mm256_add_epi32(lanes, _mm256_set1_epi32(8)), first, last)};
  }
  static F Select(M mask, F x, F y) {
    return {_mm256_blendv_ps(y.a, x.a, mask.a), _mm256_blendv_ps(y.b, x.b, mask.b)};
  }
  static F Keep(M mask, F x) { return {_mm256_and_ps(mask.a, x.a), _mm256_and_ps(mask.b, x.b)}; }
  static F KeepUnlessLess(F x, F limit, F y) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_NLT_UQ), y.a),
            _mm256_and_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_NLT_UQ), y.b)};
  }

  static float Total(F x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float Largest(F x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float Least(F x) {
    const __m256 eight = _mm256_min_ps(x.a, x.b);
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
  }

  static __m256 PowerOfMagicHalf(__m256 shifted) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f800000)));
  }
  static F PowerOfMagic(F shifted) {
    return {PowerOfMagicHalf(shifted.a), PowerOfMagicHalf(shifted.b)};
  }
  static __m256 SplitLogHalf(__m256 x, __m256* mantissa) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i exponent =
        _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(kSqrtHalfBits)), 23);
    *mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
    return _mm256_cvtepi32_ps(exponent);
  }
  static F SplitLog(F x, F* mantissa) {
    return {SplitLogHalf(x.a, &mantissa->a), SplitLogHalf(x.b, &mantissa->b)};
  }

  static I SetInt(uint32_t x) {
    return {_mm256_set1_epi32(static_cast<int>(x)), _mm256_set1_epi32(static_cast<int>(x))};
  }
  static __m256i Magnitude(__m256 x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
  }
  static I MaxMagnitude(I largest, F x) {
    return {_mm256_max_epu32(largest.a, Magnitude(x.a)),
            _mm256_max_epu32(largest.b, Magnitude(x.b))};
  }
  static uint32_t LargestInt(I x) {
    const __m256i eight = _mm256_max_epu32(x.a, x.b);
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
  }

  // Eight 32-bit whole numbers of each half as 16 bits, in order of lanes.
  static __m128i Narrow(__m256i x) {
    return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  }
  static I StoreInt8(int8_t* p, F codes, I sum) {
    const __m256i a = _mm256_cvtps_epi32(codes.a), b = _mm256_cvtps_epi32(codes.b);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(Narrow(a), Narrow(b)));
    return {_mm256_add_epi32(sum.a, a), _mm256_add_epi32(sum.b, b)};
  }
  static int32_t TotalInt(I x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
  }

  static void StoreBytes(uint8_t* p, F codes) {
    const __m128i a = Narrow(_mm256_cvtps_epi32(codes.a)), b = Narrow(_mm256_cvtps_epi32(codes.b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(a, b));
  }

  using R = __m256;
  static constexpr int kRegisterLanes = 8;
  // At most 12 of 16 registers hold sums, and at least 8, which hide the latency of a multiply-add.
  static constexpr int TileRegisters(int queries) {
    if (queries == 1) return 8;
    if (queries == 2) return 4;
    return queries <= 4 ? 3 : 2;
  }
  static R Zero() { return _mm256_setzero_ps(); }
  static R Spread(const float* p) { return _mm256_broadcast_ss(p); }
  // Always into the sum's own register: left to itself, GCC 12 moves sums about and spills one.
  static R MulAdd(R x, R y, R sum) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
    return sum;
  }
  static R Times(R x, R y) { return _mm256_mul_ps(x, y); }
  static void Put(float* p, R x) { _mm256_storeu_ps(p, x); }
  static R GetFloats(const uint8_t* p) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static R GetHalves(const uint8_t* p) { return _mm256_cvtph_ps(Load128(p)); }
  static R GetBytes(const uint8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // The eight words of a panel of 64 int4 codes from `byte` on, or of 32.
  using Words = __m256i;
  template <bool kWide>
  static Words GetWords(const uint8_t* panel, int byte) {
    if constexpr (!kWide) return _mm256_cvtepu16_epi32(Load128(panel));
    Words words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + byte));
    asm("" : "+x"(words));  // the compiler would load once for each mask
    return words;
  }
  // Register kIndex of the panel, codes times their places. `low` are the words and `high` those
  // two bytes on, whose lower halves hold the upper four nibbles: a load instead of a shift, which
  // would compete for the multiply-adds' ports.
  template <int kIndex>
  static R GetNibbles(Words low, Words high) {
    const __m256i codes =
        _mm256_and_si256(kIndex < 4 ? low : high, _mm256_set1_epi32(15 << (kIndex % 4 * 4)));
    return _mm256_cvtepi32_ps(codes);
  }
  template <int kIndex>
  static R InversePlaces() {
    return _mm256_set1_ps(1.0f / (1 << (kIndex % 4 * 4)));
  }

  static I Counters(uint32_t first) {
    const __m256i start = _mm256_set1_epi32(static_cast<int>(first));
    return {_mm256_add_epi32(start, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_add_epi32(start, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
  }
  static I Xor(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
  static __m256i MulWideHalf(__m256i x, __m256i factor, __m256i* high) {
    const __m256i even = _mm256_mul_epu32(x, factor);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  static I MulWide(I x, uint32_t factor, I* high) {
    const __m256i f = _mm256_set1_epi32(static_cast<int>(factor));
    return {MulWideHalf(x.a, f, &high->a), MulWideHalf(x.b, f, &high->b)};
  }
  static F Uniform(I bits) {
    const F whole = {_mm256_cvtepi32_ps(_mm256_srli_epi32(bits.a, 9)),
                     _mm256_cvtepi32_ps(_mm256_srli_epi32(bits.b, 9))};
    return Mul(Add(whole, Set(0.5f)), Set(0x1p-23f));
  }
};

}  // namespace qserve::kernels::cpu::avx2
