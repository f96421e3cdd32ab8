// The linear operation on tensor cores: out[m][n] = epilogue of sum_k x[m][k] * W[n][k]. Channels
// are the rows of the `mma`, tokens its columns. Launched by kernels/cuda/linear_*.cu.
//
// A block makes kRows channels x kTokens tokens. Weights, group words and activations come through
// a ring of kStages stages of one K tile each (128 bytes of a token's activations); fragments of
// the next K step are loaded while the present one multiplies, across stages too. Sums of integers
// are exact, so K may be split over blocks: each adds its sums to a tile of partial sums, and
// whoever arrives last goes on to the epilogue (device/linear_epilogue.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/device/linear_epilogue.h"
#include "kernels/cuda/device/linear_format.h"
#include "kernels/cuda/device/linear_params.h"
#include "kernels/cuda/device/linear_ring.h"
#include "kernels/cuda/device/linear_shape.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// Shape: what a block and its warps make (device/linear_shape.h).
template <class Format, class Shape>
struct LinearKernel {
  using Params = LinearParams;
  using Ring = LinearRing<Format, Shape>;
  using Sum = typename Format::Sum;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kMinBlocks = Shape::kMinBlocks;
  static constexpr int kRowFragments = Shape::kWarpRows / 16;
  static constexpr int kTokenFragments = Shape::kWarpTokens / 8;
  static constexpr int kSteps = 4;  // of 32 bytes in a K tile
  static constexpr int kBuffers = Shape::kAhead ? 2 : 1;
  static constexpr int kRingBytes =
      LinearRingBytes(Format::kTileBytes, Format::kGroups, Shape::kTokens, Shape::kStages);
  static constexpr int kSharedBytes =
      LinearSharedBytes(Format::kTileBytes, Format::kGroups, Shape::kTokens, Shape::kStages);

  // The warp's operands, as loaded from a stage: those in use and the next. Where registers are
  // short, tokens are loaded when they are due, and other warps cover the wait.
  struct Operands {
    Vec16 weights[kBuffers][kRowFragments];
    uint32_t tokens[kBuffers][kTokenFragments][2];
    uint64_t groups[kRowFragments];
  };

  static QSERVE_DEVICE void Run(const Params& p) {
    Sum sums[kRowFragments][kTokenFragments][4];
    QSERVE_UNROLL
    for (int i = 0; i < kRowFragments; ++i) {
      QSERVE_UNROLL
      for (int j = 0; j < kTokenFragments; ++j) {
        QSERVE_UNROLL
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
      }
    }
    // The block's place waits in shared memory, where it takes no registers from the loop.
    auto* place = reinterpret_cast<LinearPlace*>(SharedMemory() + kRingBytes);
    {
      const LinearBlock block = LocateBlock<Shape>(p);
      if (ThreadId() == 0) *place = block.place;
      MultiplyAll(p, block, sums);
    }
    SyncThreads();  // everybody has left the ring
    LinearEpilogue<Format, Shape>::Run(p, *place, sums);
  }

 private:
  static QSERVE_DEVICE void MultiplyAll(const Params& p, const LinearBlock& block,
                                        Sum (&sums)[kRowFragments][kTokenFragments][4]) {
    Ring ring(p, block);
    int left = block.last_k_tile - block.first_k_tile;
    QSERVE_UNROLL
    for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
      if (stage < left) ring.CopyNext(p, stage);
      CopyAsyncCommit();
    }
    CopyAsyncWait<Shape::kStages - 2>();
    SyncThreads();
    Operands operands;
    if constexpr (Shape::kAhead) {
      LoadStep(ring, 0, 0, operands);
      LoadGroups(ring, 0, operands);
    }
    for (int stage = 0; left > 0; --left) {
      GroupRegisters groups[kRowFragments];
      if constexpr (!Shape::kAhead) LoadGroups(ring, stage, operands);
      if constexpr (Format::kGroups) {
        QSERVE_UNROLL
        for (int i = 0; i < kRowFragments; ++i) groups[i] = ExpandGroups(operands.groups[i]);
      }
      // The stage before this one was left by all at the last barrier.
      if (left > Shape::kStages - 1) ring.CopyNext(p, stage == 0 ? Shape::kStages - 1 : stage - 1);
      CopyAsyncCommit();
      const int next_stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
      QSERVE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int next = (step + 1) % kSteps;
        if constexpr (!Shape::kAhead) LoadStep(ring, stage, step, operands);
        if (next == 0) {
          // The next tile has arrived, and nobody reads this one's stage any more.
          CopyAsyncWait<Shape::kStages - 2>();
          SyncThreads();
          stage = next_stage;
          if constexpr (Shape::kAhead) LoadGroups(ring, stage, operands);
        }
        if constexpr (Shape::kAhead) LoadStep(ring, stage, next, operands);
        MultiplyStep(operands, groups, step, sums);
      }
    }
  }

  static QSERVE_DEVICE void LoadStep(const Ring& ring, int stage, int step, Operands& operands) {
    if (step % Format::kStepsPerLoad == 0) LoadWeights(ring, stage, step, operands);
    LoadTokens(ring, stage, step, operands);
  }

  static QSERVE_DEVICE void LoadWeights(const Ring& ring, int stage, int step, Operands& operands) {
    const int load = step / Format::kStepsPerLoad;
    QSERVE_UNROLL
    for (int i = 0; i < kRowFragments; ++i)
      operands.weights[load % kBuffers][i] = Load16(ring.Weights(stage, load, i));
  }

  static QSERVE_DEVICE void LoadTokens(const Ring& ring, int stage, int step, Operands& operands) {
    QSERVE_UNROLL
    for (int j = 0; j < kTokenFragments; j += 2) {
      uint32_t two[4];
      LoadMatrixX4(two, ring.Tokens(stage, step, j));
      operands.tokens[step % kBuffers][j][0] = two[0];
      operands.tokens[step % kBuffers][j][1] = two[1];
      operands.tokens[step % kBuffers][j + 1][0] = two[2];
      operands.tokens[step % kBuffers][j + 1][1] = two[3];
    }
  }

  static QSERVE_DEVICE void LoadGroups(const Ring& ring, int stage, Operands& operands) {
    if constexpr (Format::kGroups) {
      QSERVE_UNROLL
      for (int i = 0; i < kRowFragments; ++i) operands.groups[i] = *ring.Groups(stage, i);
    }
  }

  static QSERVE_DEVICE void MultiplyStep(const Operands& operands,
                                         const GroupRegisters (&groups)[kRowFragments], int step,
                                         Sum (&sums)[kRowFragments][kTokenFragments][4]) {
    const int load = step / Format::kStepsPerLoad;
    QSERVE_UNROLL
    for (int i = 0; i < kRowFragments; ++i) {
      uint32_t a[4];
      Format::Expand(operands.weights[load % kBuffers][i], step % Format::kStepsPerLoad, groups[i],
                     a);
      QSERVE_UNROLL
      for (int j = 0; j < kTokenFragments; ++j)
        Format::Multiply(sums[i][j], a, operands.tokens[step % kBuffers][j]);
    }
  }
};

}  // namespace qserve::kernels::cuda
