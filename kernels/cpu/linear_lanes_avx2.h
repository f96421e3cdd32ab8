// What the 256-bit linears share, AVX2's and AVX-VNNI's: 8 lanes of int32 or fp32 (everything of
// linear_tile.h but the dot products) and 16 lanes of fp32 as two registers. Included only by
// translation units with AVX2, FMA and F16C flags, each of which gets its own copy (unnamed
// namespace).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/linear_tile.h"

namespace qserve::kernels::cpu {
namespace {

struct Lanes256 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kLanes = 8;

  static Int LoadInt(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static void StoreInt(void* to, Int value) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), value);
  }
  // One panel is a unit: its two vectors are the halves of a block.
  static Int Load(const uint8_t* block, int64_t /*panel_bytes*/, int half) {
    return LoadInt(block + half * 32);
  }
  static void Store(uint8_t* block, int64_t /*panel_bytes*/, int half, Int value) {
    StoreInt(block + half * 32, value);
  }
  static void Prefetch(const uint8_t* block, int64_t /*panel_bytes*/) {
    _mm_prefetch(reinterpret_cast<const char*>(block), _MM_HINT_T0);
  }
  static Int Low(Int codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
  static Int High(Int codes) {
    return _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
  }
  static Int Broadcast(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
  }
  // The scales of 8 rows, one in each 32-bit lane.
  static Int Scale32(const uint8_t* scales, int half) {
    return _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + half * kLanes)));
  }
  static void Accumulate(int32_t* c, Int sum) { StoreInt(c, _mm256_add_epi32(LoadInt(c), sum)); }
  static void Flush8(int32_t* c, Int acc) { Accumulate(c, acc); }

  static Float ToFloat(Int value) { return _mm256_cvtepi32_ps(value); }
  static Float LoadFloat(const float* from) { return _mm256_loadu_ps(from); }
  static void StoreFloat(float* to, Float value) { _mm256_storeu_ps(to, value); }
  static Float BroadcastFloat(float value) { return _mm256_set1_ps(value); }
  static Float Mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float Sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Int BroadcastInt(int32_t value) { return _mm256_set1_epi32(value); }
  static Int AddInt(Int a, Int b) { return _mm256_add_epi32(a, b); }
  // acc + offset * sum of two groups.
  static Int AddPairs(Int acc, const int16_t* offsets, const int16_t* sums) {
    return AddInt(
        acc, _mm256_madd_epi16(LoadInt(offsets), Broadcast(reinterpret_cast<const int8_t*>(sums))));
  }

  static void GroupSums(const int8_t* x, int64_t groups, int16_t* sums) {
    const Int ones = _mm256_set1_epi8(1);
    for (int64_t g = 0; g < groups; ++g, x += kWeightGroup) {
      Int sum = _mm256_maddubs_epi16(ones, LoadInt(x));
      for (int i = 32; i < kWeightGroup; i += 32)
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, LoadInt(x + i)));
      const Int four = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
      __m128i half = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
      half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
      half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
      sums[g] = static_cast<int16_t>(_mm_cvtsi128_si32(half));
    }
  }
};

// 16 lanes of fp32, lane l of the fixed order in element l % 8 of register l / 8.
struct Half256 {
  struct Lanes {
    __m256 low;
    __m256 high;
  };
  static Lanes Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Lanes LoadHalf(const uint16_t* from) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static void Prefetch(const uint16_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  }
  static Lanes LoadFloat(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  // l + (l + 8), then + 4, + 2, + 1.
  static float Sum(Lanes v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

}  // namespace
}  // namespace qserve::kernels::cpu
