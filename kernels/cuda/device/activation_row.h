// How a kernel writes a row of an Activation: the floats, or int8 codes with scale and exact sum,
// or both, with the bits of QuantizeRow (kernels/quant/activation_quant.h) given the same floats.
// Used at the end of norm, SiLU * up and attention by a whole block.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row_reduce.h"
#include "kernels/cuda/device/simt.h"
#include "kernels/quant/activation_quant.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

inline constexpr int kActivationRowScratch = 64;  // floats of shared memory

namespace internal {

// The code of one value as an int; NaN gives 127, and its row's scale says so.
QSERVE_DEVICE int32_t ActivationCode(float value, float inverse) {
  return RoundToInt(Max(Min(value * inverse, 127.0f), -127.0f));
}

// Codes of `values` at `to`, any alignment and count; returns this thread's part of their sum.
template <int kThreads>
QSERVE_DEVICE int32_t WriteCodes(const float* values, int cols, float inverse, int8_t* to) {
  int32_t sum = 0;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    auto* words = reinterpret_cast<uint32_t*>(to);
    done = cols / 4 * 4;
    for (int c = 4 * ThreadId(); c < done; c += 4 * kThreads) {
      const Vec16 x = Load16(values + c);
      const int32_t code[4] = {
          ActivationCode(FloatOf(x.x), inverse), ActivationCode(FloatOf(x.y), inverse),
          ActivationCode(FloatOf(x.z), inverse), ActivationCode(FloatOf(x.w), inverse)};
      sum += (code[0] + code[1]) + (code[2] + code[3]);
      const uint32_t low =
          BytePermute(static_cast<uint32_t>(code[0]), static_cast<uint32_t>(code[1]), 0x0040);
      const uint32_t high =
          BytePermute(static_cast<uint32_t>(code[2]), static_cast<uint32_t>(code[3]), 0x0040);
      words[c / 4] = BytePermute(low, high, 0x5410);
    }
  }
  for (int c = done + ThreadId(); c < cols; c += kThreads) {
    const int32_t code = ActivationCode(values[c], inverse);
    sum += code;
    to[c] = static_cast<int8_t>(code);
  }
  return sum;
}

}  // namespace internal

// Block-wide, called by all kThreads threads. Writes row `row` of `out` from out.cols floats at
// `values` in shared memory, aligned to 16 bytes. `scratch`: kActivationRowScratch floats of shared
// memory, not within `values`. Begins with a barrier, so that `values` may have been written just
// before; afterwards `values` may be written again at once, `scratch` by another call of this
// function or after a barrier.
template <int kThreads>
QSERVE_DEVICE void WriteActivationRow(const Activation& out, int64_t row, const float* values,
                                      float* scratch) {
  const int cols = static_cast<int>(out.cols);
  const bool codes = out.q != nullptr;
  SyncThreads();
  if (out.f32 != nullptr) {
    float* to = out.f32 + row * out.f32_stride;
    for (int c = ThreadId(); c < cols; c += kThreads) to[c] = values[c];
  }
  if (!codes) {
    SyncThreads();
    return;
  }
  uint32_t largest = 0;  // magnitudes compare as integers, and a NaN is the largest
  const int whole = cols / 4 * 4;
  for (int c = 4 * ThreadId(); c < whole; c += 4 * kThreads) {
    const Vec16 x = Load16(values + c);
    const uint32_t low = LargestWord::Combine(x.x & 0x7fffffffu, x.y & 0x7fffffffu);
    const uint32_t high = LargestWord::Combine(x.z & 0x7fffffffu, x.w & 0x7fffffffu);
    largest = LargestWord::Combine(largest, LargestWord::Combine(low, high));
  }
  if (whole + ThreadId() < cols) {
    largest = LargestWord::Combine(largest, BitsOf(values[whole + ThreadId()]) & 0x7fffffffu);
  }
  largest = ReduceBlock<kThreads, LargestWord>(largest, 0u, reinterpret_cast<uint32_t*>(scratch));
  const float amax = FloatOf(largest);
  const bool zero = amax < kSmallestAmax;
  // The codes of zeros are zeros, whatever they are multiplied by; tiny values times 0 are too.
  const float inverse = zero ? 0.0f : Divide(127.0f, amax);
  const int32_t part =
      internal::WriteCodes<kThreads>(values, cols, inverse, out.q + row * out.q_stride + out.lead);
  const int32_t sum =
      ReduceBlock<kThreads, AddInts>(part, 0, reinterpret_cast<int32_t*>(scratch) + 32);
  if (ThreadId() == 0) {
    out.scale[row] = zero ? 0.0f : Divide(amax, 127.0f);
    out.row_sum[row] = sum;
  }
}

}  // namespace qserve::kernels::cuda
