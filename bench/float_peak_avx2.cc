// Peak of fp32 multiply-adds, avx2: twelve chains, more than hide the latency.
#include <immintrin.h>

#include "bench/float_peak.h"

namespace qserve::bench::avx2 {

int64_t FloatPeakSteps(int64_t steps) {
  constexpr int kChains = 12;
  __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  __m256 sum[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) {
    sum[c] = x;
    asm("" : "+x"(sum[c]));  // the compiler must not see that all chains are the same
  }
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm256_fmadd_ps(x, y, sum[c]);
  }
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) asm volatile("" : : "x"(sum[c]));
  return steps * kChains * 8;
}

}  // namespace qserve::bench::avx2
