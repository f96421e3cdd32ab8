// The linear operation in AVX2. Leaf functions run on the pool's threads.
//
// 4-bit codes: one maddubs gives sums of two products, at most 2 * 15 * 127 = 3810; eight of them
// fit int16 (30480), so that widening (and with it the group scale, as the other factor of madd) is
// paid once for 32 columns. 8-bit codes of few tokens: |w| x sign(x, w), at most 2 * 127 * 127 =
// 32258, widened at once; of many: as int16, against x as int16.
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_lanes_avx2.h"

namespace qserve::kernels::cpu::avx2 {
namespace {

struct Avx2 : Lanes256 {
  static constexpr int kChunkBlocks = 4;  // 32 columns: 8 maddubs
  static constexpr bool kBiased8 = false;

  // Keeps GCC from regrouping additions, for which it would hold every product in a register or on
  // the stack.
  static Int Ordered(Int sum) {
    asm("" : "+x"(sum));
    return sum;
  }
  static Int Dot(Int acc, Int codes, Int x) {
    return Ordered(_mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x)));
  }
  static Int One() { return _mm256_set1_epi16(1); }
  static Int Scale(const uint8_t* scales, int64_t /*scale_bytes*/, int half) {
    const Int scale = Scale32(scales, half);
    return _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
  }
  static void Flush(int32_t* c, Int acc, Int scale, bool /*group*/) {
    Accumulate(c, _mm256_madd_epi16(acc, scale));
  }

  struct Codes8 {
    Int codes;
    Int magnitude;
  };
  static Codes8 Prepare8(Int codes) { return {codes, _mm256_abs_epi8(codes)}; }
  static Int Dot8(Int acc, Codes8 w, Int x) {
    const Int pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.codes));
    return Ordered(_mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }

  static Int EvenColumns(Int four) { return _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8); }
  static Int OddColumns(Int four) { return _mm256_srai_epi16(four, 8); }
  static Int DotWide(Int acc, Int w, Int x) {
    return Ordered(_mm256_add_epi32(acc, _mm256_madd_epi16(w, x)));
  }
};

constexpr PanelKernels kKernels =
    WithWideCodes<Avx2, 4>(MakePanelKernels<Avx2, Half256, 6, 4, 4>());

}  // namespace

Status Linear(OpContext& context, const LinearArgs& args) {
  return LinearPanels(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avx2
