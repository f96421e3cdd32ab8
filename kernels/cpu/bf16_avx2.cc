// bf16 products in AVX2: two registers a panel, six tokens. Leaf functions run on the pool's
// threads.
#include <immintrin.h>

#include "kernels/cpu/bf16_product.h"

namespace qserve::kernels::cpu::avx2 {
namespace {

struct Float256 {
  using Float = __m256;
  static constexpr int kLanes = 8;
  static Float Zero() { return _mm256_setzero_ps(); }
  static Float Load(const float* from) { return _mm256_loadu_ps(from); }
  static void Store(float* to, Float value) { _mm256_storeu_ps(to, value); }
  static Float Broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float Even(const uint16_t* pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(LoadPairs(pairs), 16));
  }
  static Float Odd(const uint16_t* pairs) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(LoadPairs(pairs), high));
  }
  static __m256i LoadPairs(const uint16_t* pairs) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  }
};

constexpr Bf16Kernels kKernels = MakeBf16Kernels<Float256, 6>();

}  // namespace

Status LinearBf16(OpContext& context, const LinearArgs& args) {
  return MultiplyBf16(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avx2
