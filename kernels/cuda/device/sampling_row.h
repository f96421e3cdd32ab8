// A row of logits as the sampling kernel sees it, and what can be said of it in one pass: its
// largest value, its first id, the sum of its exponentials. Values are compared through words that
// have their order, so that one integer reduction serves values and ids.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row_math.h"
#include "kernels/cuda/device/row_reduce.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// A word with the order of floats: -0 and 0 are equal, every NaN is above infinity.
QSERVE_DEVICE uint32_t KeyOf(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = BitsOf(x + 0.0f);  // -0 becomes 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
QSERVE_DEVICE float ValueOf(uint32_t key) {
  return FloatOf((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
inline constexpr uint32_t kKeyOfLowest = 0x007fffffu;    // of -infinity
inline constexpr uint32_t kKeyOfInfinity = 0xff800000u;  // NaNs are above

// Logits as they are stored, or masked and divided by a temperature on the way.
struct LogitRow {
  const float* logits = nullptr;
  const uint32_t* mask = nullptr;  // bit id % 32 of word id / 32: the id may come; null: all may
  int count = 0;
  float temperature = 1;
  bool divided = false;
};

namespace internal {

// Four stored logits from `first` on; those beyond the end are -infinity.
QSERVE_DEVICE Vec16 LoadFour(const LogitRow& row, int first, bool aligned) {
  if (aligned && first + 4 <= row.count) return Load16(row.logits + first);
  constexpr uint32_t kNothing = 0xff800000u;
  const auto bits = [&row, first](int i) {
    return first + i < row.count ? BitsOf(row.logits[first + i]) : kNothing;
  };
  return {bits(0), bits(1), bits(2), bits(3)};
}

}  // namespace internal

// Calls visit(first, values) for every four consecutive ids of the row, first a multiple of four;
// values beyond the end and those that the mask forbids are -infinity. A thread sees its ids in
// ascending order.
template <int kThreads, class Visit>
QSERVE_DEVICE void VisitGroups(const LogitRow& row, Visit visit) {
  constexpr int kAhead = 4;  // loads under way
  const bool aligned = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;
  for (int begin = 4 * ThreadId(); begin < row.count; begin += 4 * kThreads * kAhead) {
    Vec16 ahead[kAhead];
    if (aligned && begin + 4 * kThreads * (kAhead - 1) + 4 <= row.count) {
      QSERVE_UNROLL
      for (int i = 0; i < kAhead; ++i) ahead[i] = Load16(row.logits + begin + 4 * kThreads * i);
    } else {
      QSERVE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        ahead[i] = internal::LoadFour(row, begin + 4 * kThreads * i, aligned);
      }
    }
    QSERVE_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int first = begin + 4 * kThreads * i;
      if (first >= row.count) break;
      float x[4] = {FloatOf(ahead[i].x), FloatOf(ahead[i].y), FloatOf(ahead[i].z),
                    FloatOf(ahead[i].w)};
      const uint32_t allowed = row.mask != nullptr ? row.mask[first / 32] >> (first % 32) : 0xfu;
      QSERVE_UNROLL
      for (int j = 0; j < 4; ++j) {
        if ((allowed >> j & 1u) == 0) x[j] = FloatOf(0xff800000u);
        if (row.divided) x[j] = Divide(x[j], row.temperature);
      }
      visit(first, x);
    }
  }
}

// Calls visit(id, value) for every id likewise.
template <int kThreads, class Visit>
QSERVE_DEVICE void VisitRow(const LogitRow& row, Visit visit) {
  VisitGroups<kThreads>(row, [&visit](int first, const float(&x)[4]) {
    QSERVE_UNROLL
    for (int j = 0; j < 4; ++j) visit(first + j, x[j]);
  });
}

// The largest of a block's (key, id) pairs, the lowest id among equals, given to all threads. An id
// of -1 takes no part unless nobody has a larger key. `scratch`: 64 words, free again after a
// barrier.
struct KeyedId {
  uint32_t key = 0;
  int32_t id = -1;
};
template <int kThreads>
QSERVE_DEVICE KeyedId LargestOfBlock(KeyedId mine, uint32_t* scratch) {
  const uint32_t key = ReduceBlock<kThreads, LargestWord>(mine.key, 0u, scratch);
  const uint32_t inverted = mine.key == key ? ~static_cast<uint32_t>(mine.id) : 0u;
  const uint32_t id = ReduceBlock<kThreads, LargestWord>(inverted, 0u, scratch + 32);
  return {key, static_cast<int32_t>(~id)};
}

// Largest value and the lowest id that has it; a key above kKeyOfInfinity says that there is a NaN,
// one of kKeyOfLowest that there is nothing.
template <int kThreads>
QSERVE_DEVICE KeyedId ScanRow(const LogitRow& row, uint32_t* scratch) {
  KeyedId best;
  VisitRow<kThreads>(row, [&best](int id, float x) {
    const uint32_t key = KeyOf(x);
    if (key > best.key) best = {key, id};
  });
  const KeyedId largest = LargestOfBlock<kThreads>(best, scratch);
  SyncThreads();
  return largest;
}

// Sum of exp(x - max) in an order that the number of columns alone decides.
template <int kThreads>
QSERVE_DEVICE float ExpSumOfRow(const LogitRow& row, float max, uint32_t* scratch) {
  float sum = 0;
  VisitRow<kThreads>(row, [&sum, max](int, float x) { sum += Exponential(x - max); });
  sum = ReduceBlock<kThreads, AddFloats>(sum, 0.0f, reinterpret_cast<float*>(scratch));
  SyncThreads();
  return sum;
}

}  // namespace qserve::kernels::cuda
