// Integer peak of AVX-VNNI: independent chains of vpdpbusd.
#include <immintrin.h>

#include "bench/machine_peaks.h"

namespace qserve::bench::avxvnni {

int64_t PeakSteps(int64_t steps) {
  constexpr int kChains = 12;
  __m256i acc[kChains] = {};
  const __m256i w = _mm256_set1_epi8(3);
  const __m256i x = _mm256_set1_epi8(5);
  for (int64_t i = 0; i < steps; ++i) {
    for (int turn = 0; turn < 4; ++turn) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c)
        asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc[c]) : "x"(w), "x"(x));
    }
  }
  return steps * kChains * 4 * 32;
}

}  // namespace qserve::bench::avxvnni
