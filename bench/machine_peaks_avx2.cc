// Integer peak of AVX2: eight maddubs added up in int16, widened by one madd, as the 4-bit kernel
// does.
#include <immintrin.h>

#include "bench/machine_peaks.h"

namespace qserve::bench::avx2 {
namespace {

// The compiler must neither see that all chains multiply the same nor regroup the additions.
inline __m256i AddProduct(__m256i acc, __m256i w, __m256i x) {
  __m256i product;
  asm volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(w), "x"(x));
  __m256i sum = _mm256_add_epi16(acc, product);
  asm("" : "+x"(sum));
  return sum;
}

}  // namespace

int64_t PeakSteps(int64_t steps) {
  constexpr int kChains = 6;
  __m256i wide[kChains] = {};
  const __m256i w = _mm256_set1_epi8(3);
  const __m256i x = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < steps; ++i) {
    __m256i narrow[kChains] = {};
#pragma GCC unroll 8
    for (int turn = 0; turn < 8; ++turn) {
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) narrow[c] = AddProduct(narrow[c], w, x);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c)
      wide[c] = _mm256_add_epi32(wide[c], _mm256_madd_epi16(narrow[c], ones));
  }
  for (int c = 0; c < kChains; ++c) asm volatile("" : : "x"(wide[c]));
  return steps * kChains * 8 * 32;
}

}  // namespace qserve::bench::avx2
