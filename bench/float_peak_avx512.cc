// Peak of fp32 multiply-adds, avx512: twelve chains, more than hide the latency.
#include <immintrin.h>

#include "bench/float_peak.h"

namespace qserve::bench::avx512 {

int64_t FloatPeakSteps(int64_t steps) {
  constexpr int kChains = 12;
  __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  __m512 sum[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) {
    sum[c] = x;
    asm("" : "+v"(sum[c]));  // the compiler must not see that all chains are the same
  }
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_fmadd_ps(x, y, sum[c]);
  }
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) asm volatile("" : : "v"(sum[c]));
  return steps * kChains * 16;
}

}  // namespace qserve::bench::avx512
