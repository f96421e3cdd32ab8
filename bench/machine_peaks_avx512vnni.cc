// Integer peak of AVX512-VNNI: independent chains of vpdpbusd.
#include <immintrin.h>

#include "bench/machine_peaks.h"

namespace qserve::bench::avx512vnni {

int64_t PeakSteps(int64_t steps) {
  constexpr int kChains = 12;
  __m512i acc[kChains] = {};
  const __m512i w = _mm512_set1_epi8(3);
  const __m512i x = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < steps; ++i) {
    for (int turn = 0; turn < 4; ++turn) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c)
        asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc[c]) : "v"(w), "v"(x));
    }
  }
  return steps * kChains * 4 * 64;
}

}  // namespace qserve::bench::avx512vnni
