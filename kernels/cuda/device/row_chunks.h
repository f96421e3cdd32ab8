// A row spread over the registers of a block: thread t holds eight consecutive elements of every
// chunk of 8 * kThreads columns. Loads and stores of such groups in any element type, and the row's
// rounding to int8 from registers. Used by the row-wise kernels.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/activation_row.h"
#include "kernels/cuda/device/row_reduce.h"
#include "kernels/cuda/device/simt.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

inline constexpr int kGroup = 8;  // elements that a thread takes at once

namespace internal {

template <FloatType kType>
QSERVE_DEVICE float Widen(uint32_t bits) {
  const auto half = static_cast<uint16_t>(bits);
  return kType == FloatType::kF16 ? HalfBitsToFloat(half) : Bf16BitsToFloat(half);
}
template <FloatType kType>
QSERVE_DEVICE uint32_t Narrow(float x) {
  return kType == FloatType::kF16 ? FloatToHalfBits(x) : FloatToBf16Bits(x);
}

template <FloatType kType>
QSERVE_DEVICE void WidenPair(uint32_t pair, float& low, float& high) {
  low = Widen<kType>(pair & 0xffffu);
  high = Widen<kType>(pair >> 16);
}
template <FloatType kType>
QSERVE_DEVICE uint32_t NarrowPair(float low, float high) {
  if (kType == FloatType::kF16) return HalfPair(low, high);
  return Narrow<kType>(low) | Narrow<kType>(high) << 16;
}

}  // namespace internal

// Elements [first, first + 8) of a row of `cols`; those beyond its end are 0. `aligned`: the row
// begins at a multiple of sixteen bytes (first is a multiple of eight).
template <FloatType kType>
QSERVE_DEVICE void LoadGroup(const void* row, int first, int cols, bool aligned,
                             float (&x)[kGroup]) {
  const bool whole = aligned && first + kGroup <= cols;
  if constexpr (kType == FloatType::kF32) {
    const float* from = static_cast<const float*>(row) + first;
    if (whole) {
      const Vec16 low = Load16(from), high = Load16(from + 4);
      const uint32_t bits[kGroup] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) x[i] = FloatOf(bits[i]);
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) x[i] = first + i < cols ? from[i] : 0.0f;
    }
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    if (whole) {
      const Vec16 v = Load16(from);
      internal::WidenPair<kType>(v.x, x[0], x[1]);
      internal::WidenPair<kType>(v.y, x[2], x[3]);
      internal::WidenPair<kType>(v.z, x[4], x[5]);
      internal::WidenPair<kType>(v.w, x[6], x[7]);
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        x[i] = first + i < cols ? internal::Widen<kType>(from[i]) : 0.0f;
      }
    }
  }
}

// The reverse; nothing is written beyond the row's end.
template <FloatType kType>
QSERVE_DEVICE void StoreGroup(void* row, int first, int cols, bool aligned,
                              const float (&x)[kGroup]) {
  const bool whole = aligned && first + kGroup <= cols;
  if constexpr (kType == FloatType::kF32) {
    float* to = static_cast<float*>(row) + first;
    if (whole) {
      Store16(to, {BitsOf(x[0]), BitsOf(x[1]), BitsOf(x[2]), BitsOf(x[3])});
      Store16(to + 4, {BitsOf(x[4]), BitsOf(x[5]), BitsOf(x[6]), BitsOf(x[7])});
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        if (first + i < cols) to[i] = x[i];
      }
    }
  } else {
    uint16_t* to = static_cast<uint16_t*>(row) + first;
    if (whole) {
      Store16(to,
              {internal::NarrowPair<kType>(x[0], x[1]), internal::NarrowPair<kType>(x[2], x[3]),
               internal::NarrowPair<kType>(x[4], x[5]), internal::NarrowPair<kType>(x[6], x[7])});
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        if (first + i < cols) to[i] = static_cast<uint16_t>(internal::Narrow<kType>(x[i]));
      }
    }
  }
}

// The same where the type is known only when the kernel runs (all threads take one way).
QSERVE_DEVICE void LoadGroup(FloatType type, const void* row, int first, int cols, bool aligned,
                             float (&x)[kGroup]) {
  if (type == FloatType::kF32) {
    LoadGroup<FloatType::kF32>(row, first, cols, aligned, x);
  } else if (type == FloatType::kF16) {
    LoadGroup<FloatType::kF16>(row, first, cols, aligned, x);
  } else {
    LoadGroup<FloatType::kBf16>(row, first, cols, aligned, x);
  }
}
QSERVE_DEVICE void StoreGroup(FloatType type, void* row, int first, int cols, bool aligned,
                              const float (&x)[kGroup]) {
  if (type == FloatType::kF32) {
    StoreGroup<FloatType::kF32>(row, first, cols, aligned, x);
  } else if (type == FloatType::kF16) {
    StoreGroup<FloatType::kF16>(row, first, cols, aligned, x);
  } else {
    StoreGroup<FloatType::kBf16>(row, first, cols, aligned, x);
  }
}

// BytesOf (kernels/types.h), for device code.
QSERVE_DEVICE int64_t ElementBytes(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

// Row `row` of a matrix of elements of `type`.
template <class Byte>
QSERVE_DEVICE Byte* RowBytes(Byte* data, FloatType type, int64_t row, int64_t stride) {
  return data + row * stride * ElementBytes(type);
}

// First column of this thread's group in chunk `chunk`.
template <int kThreads>
QSERVE_DEVICE int GroupColumn(int chunk) {
  return kGroup * (chunk * kThreads + ThreadId());
}

namespace internal {

// Eight codes; the last ones of a row may be fewer. `wide`: `to` is a multiple of eight bytes.
QSERVE_DEVICE int32_t StoreCodes(const float (&x)[kGroup], float inverse, int left, bool wide,
                                 int8_t* to) {
  int32_t code[kGroup];
  int32_t sum = 0;
  QSERVE_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    code[i] = ActivationCode(x[i], inverse);
    sum += code[i];  // elements beyond the end are 0
  }
  if (wide && left >= kGroup) {
    uint32_t word[2];
    QSERVE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const auto bits = [&code, i](int j) { return static_cast<uint32_t>(code[4 * i + j]); };
      word[i] = BytePermute(BytePermute(bits(0), bits(1), 0x0040),
                            BytePermute(bits(2), bits(3), 0x0040), 0x5410);
    }
    *reinterpret_cast<uint64_t*>(to) = static_cast<uint64_t>(word[1]) << 32 | word[0];
  } else {
    QSERVE_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      if (i < left) to[i] = static_cast<int8_t>(code[i]);
    }
  }
  return sum;
}

}  // namespace internal

// As WriteActivationRow, of a row in registers whose elements beyond its end are 0. `scratch`:
// kActivationRowScratch words of shared memory that nobody else uses until the kernel's end. Every
// thread may call it once.
template <int kThreads, int kChunks>
QSERVE_DEVICE void WriteActivationChunks(const Activation& out, int64_t row,
                                         const float (&x)[kChunks][kGroup], uint32_t* scratch) {
  const int cols = static_cast<int>(out.cols);
  if (out.f32 != nullptr) {
    float* to = out.f32 + row * out.f32_stride;
    const bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0;
    QSERVE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = GroupColumn<kThreads>(chunk);
      if (first < cols) StoreGroup<FloatType::kF32>(to, first, cols, aligned, x[chunk]);
    }
  }
  if (out.q == nullptr) return;
  uint32_t largest = 0;  // magnitudes compare as integers, and a NaN is the largest
  QSERVE_UNROLL
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    QSERVE_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      largest = LargestWord::Combine(largest, BitsOf(x[chunk][i]) & 0x7fffffffu);
    }
  }
  const float amax = FloatOf(ReduceBlock<kThreads, LargestWord>(largest, 0u, scratch));
  const bool zero = amax < kSmallestAmax;
  const float inverse = zero ? 0.0f : Divide(127.0f, amax);
  int8_t* to = out.q + row * out.q_stride + out.lead;
  const bool wide = reinterpret_cast<uintptr_t>(to) % 8 == 0;
  int32_t part = 0;
  QSERVE_UNROLL
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int first = GroupColumn<kThreads>(chunk);
    if (first < cols) {
      part += internal::StoreCodes(x[chunk], inverse, cols - first, wide, to + first);
    }
  }
  const int32_t sum =
      ReduceBlock<kThreads, AddInts>(part, 0, reinterpret_cast<int32_t*>(scratch) + 32);
  if (ThreadId() == 0) {
    out.scale[row] = zero ? 0.0f : Divide(amax, 127.0f);
    out.row_sum[row] = sum;
  }
}

}  // namespace qserve::kernels::cuda
