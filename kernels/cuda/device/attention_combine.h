// Merging of the parts of each row's attention, in order, by the formula of attention_kernel.h, and
// the writing of the row. Launched through kernels/cuda/attention.h. Several blocks share a row;
// the last to arrive at the row's counter writes it.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/activation_row.h"
#include "kernels/cuda/device/attention_params.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

struct AttentionCombineParams {
  float* parts = nullptr;
  const float* weights = nullptr;
  const int32_t* first_parts = nullptr;
  const int32_t* part_counts = nullptr;
  int32_t heads = 0;
  int32_t head_dim = 0;
  Activation out;
  int32_t* arrived = nullptr;
};

struct AttentionCombine {
  using Params = AttentionCombineParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr int kBlockColumns = 4 * kThreads;  // four of each thread

  static constexpr int64_t SharedBytes(int64_t columns) {
    return 4 * (columns + kActivationRowScratch);
  }

  // Grid: x rows, y blocks that share the row's columns.
  static QSERVE_DEVICE void Run(const Params& p) {
    const int row = BlockX(), columns = p.heads * p.head_dim;
    const int first = BlockY() * kBlockColumns + 4 * ThreadId();
    float* scratch = reinterpret_cast<float*>(SharedMemory());
    float* values = scratch + kActivationRowScratch;
    const int count = p.part_counts[row];
    float* part = p.parts + int64_t{p.first_parts[row]} * columns;
    for (int c = first; c < columns; c += GridY() * kBlockColumns) {
      const Vec16 merged = count > 0 ? Merge(p, row, c, count) : Vec16{};
      if (GridY() == 1) {
        Store16(values + c, merged);
      } else if (count > 0) {
        Store16(part + c, merged);
      }
    }
    if (GridY() > 1) {
      // The barrier gathers the block's stores behind one thread, whose fences order them before
      // its arrival and, in the block that arrives last, everybody's before the loads.
      SyncThreads();
      bool last = false;
      if (ThreadId() == 0) {
        ThreadFence();
        last = AtomicAdd(p.arrived + row, 1) == GridY() - 1;
        ThreadFence();
      }
      if (!SyncThreadsOr(last)) return;
      if (ThreadId() == 0) p.arrived[row] = 0;
      for (int c = 4 * ThreadId(); c < columns; c += kBlockColumns) {
        Store16(values + c, count > 0 ? Load16(part + c) : Vec16{});
      }
    }
    WriteActivationRow<kThreads>(p.out, row, values, scratch);
  }

 private:
  static QSERVE_DEVICE Vec16 Merge(const Params& p, int row, int column, int count) {
    struct alignas(8) Pair {
      float max, sum;
    };
    const int columns = p.heads * p.head_dim;
    const int64_t first = p.first_parts[row];
    const float* from = p.parts + first * columns + column;
    const auto* weights =
        reinterpret_cast<const Pair*>(p.weights) + first * p.heads + column / p.head_dim;
    float max = -__builtin_inff(), sum = 0, out[4] = {};
    for (int i = 0; i < count; ++i) {
      const Vec16 v = Load16(from + int64_t{i} * columns);
      const Pair weight = weights[int64_t{i} * p.heads];
      const float larger = Max(max, weight.max), shift = SoftmaxShift(larger);
      const float a = Exp2(max - shift), b = Exp2(weight.max - shift);
      const float part[4] = {FloatOf(v.x), FloatOf(v.y), FloatOf(v.z), FloatOf(v.w)};
      max = larger;
      sum = Fma(sum, a, weight.sum * b);
      QSERVE_UNROLL
      for (int k = 0; k < 4; ++k) out[k] = Fma(out[k], a, part[k] * b);
    }
    const float inverse = Divide(1.0f, sum);
    return {BitsOf(out[0] * inverse), BitsOf(out[1] * inverse), BitsOf(out[2] * inverse),
            BitsOf(out[3] * inverse)};
  }
};

}  // namespace qserve::kernels::cuda
