// bf16 products in AVX512: one register a panel, twelve tokens. VDPBF16PS is not used: it adds in
// another order than tiles do. Leaf functions run on the pool's threads.
#include <immintrin.h>

#include "kernels/cpu/bf16_product.h"

namespace qserve::kernels::cpu::avx512 {
namespace {

struct Float512 {
  using Float = __m512;
  static constexpr int kLanes = 16;
  static Float Zero() { return _mm512_setzero_ps(); }
  static Float Load(const float* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, Float value) { _mm512_storeu_ps(to, value); }
  static Float Broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float Even(const uint16_t* pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16));
  }
  static Float Odd(const uint16_t* pairs) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), high));
  }
};

constexpr Bf16Kernels kKernels = MakeBf16Kernels<Float512, 12>();

}  // namespace

Status LinearBf16(OpContext& context, const LinearArgs& args) {
  return MultiplyBf16(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avx512
