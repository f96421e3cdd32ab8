// Reductions over a warp and over a block, in one order whatever the data: butterflies, whose
// lanes all end with the same bits. Used by the row-wise and sampling kernels.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// What a reduction does with two partial results; commutative.
struct AddFloats {
  static QSERVE_DEVICE float Combine(float a, float b) { return a + b; }
};
struct AddInts {
  static QSERVE_DEVICE int32_t Combine(int32_t a, int32_t b) { return a + b; }
};
struct LargestWord {
  static QSERVE_DEVICE uint32_t Combine(uint32_t a, uint32_t b) { return a > b ? a : b; }
};

template <class Operation, class T>
QSERVE_DEVICE T ReduceWarp(T value) {
  QSERVE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    value = Operation::Combine(value, ShuffleXor(value, mask));
  }
  return value;
}

// Of all kThreads threads, given to all. `scratch`: one T per warp, which nobody may touch until
// the block's next barrier. Contains one barrier; `neutral` changes nothing that it is combined
// with.
template <int kThreads, class Operation, class T>
QSERVE_DEVICE T ReduceBlock(T value, T neutral, T* scratch) {
  constexpr int kWarps = kThreads / 32;
  value = ReduceWarp<Operation>(value);
  if (LaneId() == 0) scratch[WarpId()] = value;
  SyncThreads();
  return ReduceWarp<Operation>(LaneId() < kWarps ? scratch[LaneId()] : neutral);
}

}  // namespace qserve::kernels::cuda
