// The linear operation in AVX-VNNI (256-bit vpdpbusd without AVX512). Leaf functions run on the
// pool's threads. Sums are int32 from the start; the group scale is one multiplication for 128
// columns. 8-bit codes are multiplied as code + 128.
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_lanes_avx2.h"

namespace qserve::kernels::cpu::avxvnni {
namespace {

struct AvxVnni : Lanes256 {
  static constexpr int kChunkBlocks = kGroupBlocks;
  static constexpr bool kBiased8 = true;

  static Int Dot(Int acc, Int codes, Int x) { return _mm256_dpbusd_avx_epi32(acc, codes, x); }
  static Int One() { return _mm256_setzero_si256(); }  // not looked at
  static Int Scale(const uint8_t* scales, int64_t /*scale_bytes*/, int half) {
    return Scale32(scales, half);
  }
  static void Flush(int32_t* c, Int acc, Int scale, bool group) {
    Accumulate(c, group ? _mm256_mullo_epi32(acc, scale) : acc);
  }

  using Codes8 = Int;
  static Codes8 Prepare8(Int codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8(-128)); }
  static Int Dot8(Int acc, Codes8 w, Int x) { return Dot(acc, w, x); }
};

constexpr PanelKernels kKernels = MakePanelKernels<AvxVnni, Half256, 6, 6, 6>();

}  // namespace

Status Linear(OpContext& context, const LinearArgs& args) {
  return LinearPanels(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avxvnni
