// The linear operation in AMX-INT8, beside AVX512 for what tiles cannot do. Leaf functions run on
// the pool's threads.
#include <immintrin.h>

#include "kernels/cpu/amx_registers.h"
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/linear.h"

namespace qserve::kernels::cpu::avx512amx {
namespace {

struct TileRegisters : AmxRegisters {
  template <int kC, int kA, int kB>
  void Dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

// 64 bytes: four columns of 16 rows.
struct Bytes512 {
  using Int = __m512i;
  static Int Load(const void* from) { return _mm512_loadu_si512(from); }
  static void Store(void* to, Int value) { _mm512_storeu_si512(to, value); }
  static void Prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
  }
  static Int Low(Int codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
  static Int High(Int codes) { return Low(_mm512_srli_epi16(codes, 4)); }
  // In both halves of a row's 32 bits.
  static Int Scale(const uint8_t* scales) {
    const Int wide =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
    return _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
  }
  // The low byte of one of a row's two offsets, four times.
  static Int Offset(const int16_t* offsets, bool second) {
    const Int from = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
    const Int byte = _mm512_mullo_epi32(_mm512_add_epi32(from, _mm512_set1_epi32(second ? 2 : 0)),
                                        _mm512_set1_epi32(0x01010101));
    return _mm512_shuffle_epi8(Load(offsets), byte);
  }
  // Products of even and of odd bytes apart, each cut to its low byte.
  static Int Scaled(Int codes, Int scale, Int offset) {
    const Int low_bytes = _mm512_set1_epi16(0xff);
    const Int even = _mm512_mullo_epi16(_mm512_and_si512(codes, low_bytes), scale);
    const Int odd = _mm512_mullo_epi16(_mm512_andnot_si512(low_bytes, codes), scale);
    // Each bit of `even` where low_bytes is set, else of `odd`.
    return _mm512_add_epi8(_mm512_ternarylogic_epi32(low_bytes, even, odd, 0xca), offset);
  }
};

constexpr TileKernels kKernels =
    MakeTileKernels<TileRegisters, Bytes512>(&avx512vnni::FinishPair, &avx512vnni::Linear);

}  // namespace

Status Linear(OpContext& context, const LinearArgs& args) {
  return LinearByChoice(context, args, kKernels);
}

Status LinearByTiles(OpContext& context, const LinearArgs& args) {
  return LinearTiles(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::avx512amx
