// Rotation of queries and keys and the storing of keys and values, see kernels/cuda/attention.h. A
// warp takes one head of q, k or v of one row. The arithmetic is that of the CPU's reference, to
// the bit: sums over 16 virtual lanes, no contraction but where Fma is written.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attention_fragment.h"
#include "kernels/cuda/device/kv_page_address.h"
#include "kernels/cuda/device/row_reduce.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

struct RopeAppendParams {
  uint16_t* qkv = nullptr;
  int64_t stride = 0;
  FloatType type = FloatType::kF16;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  const float* cos_sin = nullptr;
  const float* q_gain = nullptr;
  const float* k_gain = nullptr;
  float epsilon = 0;
  const int32_t* positions = nullptr;
  const int32_t* pages_of_rows = nullptr;
  uint8_t* pages = nullptr;
  int64_t page_bytes = 0;
};

struct LeastFloat {
  static QSERVE_DEVICE float Combine(float a, float b) { return Min(a, b); }
};
struct LargestFloat {
  static QSERVE_DEVICE float Combine(float a, float b) { return Max(a, b); }
};

// Scale and minimum of a key or value, as ChooseKvParameters of kernels/quant/kv_quant.h.
struct KvScale {
  uint32_t stored = 0;  // scale low, minimum high
  float minimum = 0;
  float inverse = 0;
};
QSERVE_DEVICE float SaturateToHalf(float x) {  // keeps NaN
  if (x > 65504.0f) return 65504.0f;
  return x < -65504.0f ? -65504.0f : x;
}
QSERVE_DEVICE KvScale ChooseKvScale(float min, float max, int levels) {
  const uint16_t minimum = FloatToHalfBits(SaturateToHalf(min) + 0.0f);
  uint16_t scale = FloatToHalfBits(SaturateToHalf(Divide(max - min, static_cast<float>(levels))));
  KvScale result;
  if (HalfBitsToFloat(scale) < 0x1p-22f) {
    scale = 0;
  } else {
    result.inverse = Divide(1.0f, HalfBitsToFloat(scale));
  }
  result.stored = uint32_t{scale} | uint32_t{minimum} << 16;
  result.minimum = HalfBitsToFloat(minimum);
  return result;
}
QSERVE_DEVICE uint32_t KvCode(float x, const KvScale& scale, int levels) {
  const int32_t code = RoundToInt((x - scale.minimum) * scale.inverse);  // NaN: 0
  return static_cast<uint32_t>(code < 0 ? 0 : code > levels ? levels : code);
}

template <KvFormat kFormat, int kHeadDim>
struct RopeAppendKernel {
  using Params = RopeAppendParams;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = 8;
  static constexpr int64_t kSharedBytes = int64_t{kWarps} * kHeadDim * 4;

  // Grid: x rows, y heads of q, k and v together, kWarps a block.
  static QSERVE_DEVICE void Run(const Params& p) {
    const int row = BlockX(), head = BlockY() * kWarps + WarpId();
    const int position = p.positions[row];
    if (position < 0 || head >= p.heads + 2 * p.kv_heads) return;
    float* x = reinterpret_cast<float*>(SharedMemory()) + WarpId() * kHeadDim;
    uint16_t* stored = p.qkv + row * p.stride + head * kHeadDim;
    const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
    for (int c = LaneId(); c < kHeadDim; c += 32) {
      x[c] = p.type == FloatType::kF16 ? HalfBitsToFloat(stored[c]) : Bf16BitsToFloat(stored[c]);
    }
    SyncWarp();
    if (!is_value) {
      NormHead(x, is_query ? p.q_gain : p.k_gain, p.epsilon);
      Rotate(x, p.cos_sin + int64_t{position} * kHeadDim);
    }
    if (is_query) {
      for (int c = LaneId(); c < kHeadDim; c += 32) {
        stored[c] = p.type == FloatType::kF16 ? FloatToHalfBits(x[c]) : FloatToBf16Bits(x[c]);
      }
      return;
    }
    const int kv_head = head - p.heads - (is_value ? p.kv_heads : 0);
    uint8_t* page = p.pages + p.pages_of_rows[row] * p.page_bytes + kv_head * Page::kHeadBytes;
    StoreVector(x, page, position % kKvPageTokens, is_value);
  }

 private:
  using Page = KvPage<kFormat, kHeadDim>;

  static QSERVE_DEVICE void NormHead(float* x, const float* gain, float epsilon) {
    if (gain == nullptr) return;
    float squares = 0;
    for (int c = LaneId() % 16; c < kHeadDim; c += 16) squares = Fma(x[c], x[c], squares);
    QSERVE_UNROLL
    for (int mask = 8; mask > 0; mask /= 2) squares += ShuffleXor(squares, mask);
    const float mean = Divide(squares, static_cast<float>(kHeadDim));
    const float inverse = Divide(1.0f, SquareRoot(mean + epsilon));
    SyncWarp();
    for (int c = LaneId(); c < kHeadDim; c += 32) x[c] = (x[c] * inverse) * gain[c];
    SyncWarp();
  }

  static QSERVE_DEVICE void Rotate(float* x, const float* cos_sin) {
    constexpr int kHalf = kHeadDim / 2;
    for (int i = LaneId(); i < kHalf; i += 32) {
      const float a = x[i], b = x[i + kHalf];
      const float cosine = cos_sin[i], sine = cos_sin[kHalf + i];
      x[i] = Fma(a, cosine, -(b * sine));
      x[i + kHalf] = Fma(b, cosine, a * sine);
    }
    SyncWarp();
  }

  static QSERVE_DEVICE void StoreVector(const float* x, uint8_t* page, int slot, bool is_value) {
    if constexpr (Page::kQuantized) {
      float least = x[LaneId()], largest = least;
      for (int c = LaneId() + 32; c < kHeadDim; c += 32) {
        least = Min(least, x[c]);
        largest = Max(largest, x[c]);
      }
      const KvScale scale = ChooseKvScale(ReduceWarp<LeastFloat>(least),
                                          ReduceWarp<LargestFloat>(largest), Page::kLevels);
      if (LaneId() == 0) {
        *reinterpret_cast<uint32_t*>(page + ParameterByte<Page>(slot, is_value)) = scale.stored;
      }
      const auto code = [x, &scale](int c) { return KvCode(x[c], scale, Page::kLevels); };
      StoreCodes(page, slot, is_value, code);
    } else {
      const auto bits = [x](int c) { return uint32_t{FloatToHalfBits(x[c])}; };
      StoreCodes(page, slot, is_value, bits);
    }
  }

  template <class Code>
  static QSERVE_DEVICE void StoreCodes(uint8_t* page, int slot, bool is_value, Code code) {
    if (is_value) {
      for (int pair = LaneId(); pair < kHeadDim / 2; pair += 32) {
        StoreValuePair(page + ValueByte<Page>(slot, pair), code(2 * pair), code(2 * pair + 1));
      }
      return;
    }
    constexpr int kInWord = 32 / Page::kBits;  // channels of a word
    constexpr int kLaneWords = Page::kLaneKeyBytes / 4;
    for (int word = LaneId(); word < kHeadDim / kInWord; word += 32) {
      uint32_t bits = 0;
      QSERVE_UNROLL
      for (int i = 0; i < kInWord; ++i) {
        const int shift = Page::kBits == 4 ? KeyNibbleShift(i) : i * Page::kBits;
        const uint32_t value = code(word * kInWord + i);
        bits |= value << shift;
        if (shift > 32 - Page::kBits) bits |= value >> (32 - shift);
      }
      const int at = KeyByte<Page>(slot, word / kLaneWords, word % kLaneWords * 4);
      *reinterpret_cast<uint32_t*>(page + at) = bits;
    }
  }

  static QSERVE_DEVICE void StoreValuePair(uint8_t* to, uint32_t first, uint32_t second) {
    if constexpr (Page::kBits == 4) {
      *to = static_cast<uint8_t>(first | second << 4);
    } else if constexpr (Page::kBits == 8) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(first | second << 8);
    } else {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(first);
      *reinterpret_cast<uint16_t*>(to + 4) = static_cast<uint16_t>(second);
    }
  }
};

}  // namespace qserve::kernels::cuda
