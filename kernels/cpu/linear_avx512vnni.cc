// The linear operation in AVX512-VNNI: 16 rows a register, two panels a unit. Leaf functions run on
// the pool's threads.
#include <immintrin.h>

#include "kernels/cpu/amx_panel.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_tile.h"

namespace qserve::kernels::cpu::avx512vnni {
namespace {

struct Avx512Vnni {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kChunkBlocks = kGroupBlocks;
  static constexpr bool kBiased8 = true;

  static Int LoadInt(const void* from) { return _mm512_loadu_si512(from); }
  static Int Load(const uint8_t* block, int64_t panel_bytes, int panel) {
    return LoadInt(block + panel * panel_bytes);
  }
  static void Store(uint8_t* block, int64_t panel_bytes, int panel, Int value) {
    _mm512_storeu_si512(block + panel * panel_bytes, value);
  }
  static void Prefetch(const uint8_t* block, int64_t panel_bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(block), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(block + panel_bytes), _MM_HINT_T0);
  }
  static Int Low(Int codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
  static Int High(Int codes) {
    return _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
  }
  static Int Broadcast(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof(four));
    return _mm512_set1_epi32(four);
  }
  static Int Dot(Int acc, Int codes, Int x) { return _mm512_dpbusd_epi32(acc, codes, x); }
  static Int One() { return _mm512_setzero_si512(); }  // not looked at
  static Int Scale(const uint8_t* scales, int64_t scale_bytes, int panel) {
    return _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + panel * scale_bytes)));
  }
  static void Accumulate(int32_t* c, Int sum) {
    _mm512_storeu_si512(c, _mm512_add_epi32(LoadInt(c), sum));
  }
  static void Flush(int32_t* c, Int acc, Int scale, bool group) {
    Accumulate(c, group ? _mm512_mullo_epi32(acc, scale) : acc);
  }
  static void Flush8(int32_t* c, Int acc) { Accumulate(c, acc); }

  using Codes8 = Int;
  static Codes8 Prepare8(Int codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
  static Int Dot8(Int acc, Codes8 w, Int x) { return Dot(acc, w, x); }

  static Float ToFloat(Int value) { return _mm512_cvtepi32_ps(value); }
  static Float LoadFloat(const float* from) { return _mm512_loadu_ps(from); }
  static void StoreFloat(float* to, Float value) { _mm512_storeu_ps(to, value); }
  static Float BroadcastFloat(float value) { return _mm512_set1_ps(value); }
  static Float Mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float Sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Int BroadcastInt(int32_t value) { return _mm512_set1_epi32(value); }
  static Int AddInt(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int AddPairs(Int acc, const int16_t* offsets, const int16_t* sums) {
    return AddInt(
        acc, _mm512_madd_epi16(LoadInt(offsets), Broadcast(reinterpret_cast<const int8_t*>(sums))));
  }
  static void GroupSums(const int8_t* x, int64_t groups, int16_t* sums) {
    const Int ones = _mm512_set1_epi8(1);
    for (int64_t g = 0; g < groups; ++g, x += kWeightGroup) {
      const Int sum = _mm512_dpbusd_epi32(
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, LoadInt(x)), ones, LoadInt(x + 64));
      sums[g] = static_cast<int16_t>(_mm512_reduce_add_epi32(sum));
    }
  }
};

// 16 lanes of fp32 in one register.
struct Half512 {
  using Lanes = __m512;
  static Lanes Zero() { return _mm512_setzero_ps(); }
  static Lanes LoadHalf(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void Prefetch(const uint16_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  }
  static Lanes LoadFloat(const float* from) { return _mm512_loadu_ps(from); }
  static Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
  // l + (l + 8), then + 4, + 2, + 1.
  static float Sum(Lanes v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

constexpr PanelKernels kKernels = MakePanelKernels<Avx512Vnni, Half512, 8, 8, 8>();

}  // namespace

Status Linear(OpContext& context, const LinearArgs& args) {
  return LinearPanels(context, args, kKernels);
}
void FinishPair(const EpilogueArgs& args) { Epilogue<Avx512Vnni>(args); }

}  // namespace qserve::kernels::cpu::avx512vnni
