// Merging of the parts of each row's attention, in order, by the formula of attention_kernel.h, and
// the writing of the row. Launched through kernels/cuda/attention.h. Several blocks share a row;
// the last to arrive at the row's counter writes it.
//
// A long context is hundreds of parts, and a row's are merged one after the other. So that this
// takes a few microseconds and no loads' latencies, many blocks share such a row, parts are brought
// to shared memory tiles ahead, and what needs no order is taken out of the sequence: the maxima so
// far (a prefix, exact in any order) and the factors that follow from them. What is left of a part
// is one multiply-add behind the other. The bits are those of Merge.
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

  // Where blocks share a row of more than kFewParts parts: columns that a block merges at once, and
  // the tiles of parts (one a lane) that are on their way.
  static constexpr int kFewParts = 8;
  static constexpr int kSlice = 128;
  static constexpr int kTileParts = 32;
  static constexpr int kTiles = 3;
  static constexpr int kTileFloats = kTileParts * kSlice;
  static constexpr int kLeastHeadDim = 64;
  static constexpr int kSliceHeads = kSlice / kLeastHeadDim + 1;  // that a slice touches, at most
  static constexpr int kFactorFloats = kSliceHeads * kTileParts * 4;  // twice there

  // `shared_rows`: the grid has more than one block a row.
  static constexpr int64_t SharedBytes(int64_t columns, bool shared_rows) {
    const int64_t row = 4 * (columns + kActivationRowScratch);
    const int64_t tiles = 4 * (kTiles * kTileFloats + 2 * kFactorFloats);
    return shared_rows && tiles > row ? tiles : row;
  }

  // Grid: x rows, y blocks that share the row's columns.
  static QSERVE_DEVICE void Run(const Params& p) {
    const int row = BlockX(), columns = p.heads * p.head_dim;
    const int first = BlockY() * kBlockColumns + 4 * ThreadId();
    float* scratch = reinterpret_cast<float*>(SharedMemory());
    float* values = scratch + kActivationRowScratch;
    const int count = p.part_counts[row];
    float* part = p.parts + int64_t{p.first_parts[row]} * columns;
    const bool many = GridY() > 1 && count > kFewParts && p.head_dim >= kLeastHeadDim;
    for (int c = BlockY() * kSlice; many && c < columns; c += GridY() * kSlice) {
      MergeSlice(p, row, c, count, scratch);
    }
    for (int c = many ? columns : first; c < columns; c += GridY() * kBlockColumns) {
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
  struct alignas(8) Pair {
    float max, sum;
  };
  // What a part changes: the totals are multiplied by `kept`, the part by `added`.
  struct alignas(16) Factors {
    float kept, added, sum, unused;
  };

  // Columns [slice, slice + kSlice) of a row of many parts, by the whole block, into part 0.
  static QSERVE_DEVICE void MergeSlice(const Params& p, int row, int slice, int count,
                                       float* shared) {
    const int columns = p.heads * p.head_dim;
    const int width = columns - slice < kSlice ? columns - slice : kSlice;
    const int first_head = slice / p.head_dim;
    const int heads = (slice + width - 1) / p.head_dim - first_head + 1;
    float* parts = p.parts + int64_t{p.first_parts[row]} * columns + slice;
    const int tiles = (count + kTileParts - 1) / kTileParts;
    const auto copy = [&](int tile) {
      for (int i = ThreadId(); tile < tiles && i < kTileFloats / 4; i += kThreads) {
        const int at = tile * kTileParts + i / (kSlice / 4), column = i % (kSlice / 4) * 4;
        if (at < count && column < width) {
          CopyAsync16(shared + tile % kTiles * kTileFloats + 4 * i,
                      parts + int64_t{at} * columns + column);
        }
      }
      CopyAsyncCommit();
    };
    // Warp w knows the maximum so far of the slice's head w, and the next tile's weights.
    const auto* weights = reinterpret_cast<const Pair*>(p.weights) +
                          int64_t{p.first_parts[row]} * p.heads + first_head + WarpId();
    const auto load = [&](int tile) {
      const int at = tile * kTileParts + LaneId();
      return WarpId() < heads && at < count ? weights[int64_t{at} * p.heads]
                                            : Pair{-__builtin_inff(), 0};
    };
    float max = -__builtin_inff(), sum = 0, out = 0;
    Pair weight = load(0);
    SyncThreads();  // another slice may still be read
    for (int tile = 0; tile < kTiles - 1; ++tile) copy(tile);
    const int head = (slice + ThreadId()) / p.head_dim - first_head;
    for (int tile = 0; tile < tiles; ++tile) {
      auto* factors = reinterpret_cast<Factors*>(shared + kTiles * kTileFloats) +
                      tile % 2 * kSliceHeads * kTileParts;
      if (WarpId() < heads) {
        factors[WarpId() * kTileParts + LaneId()] = FactorsOf(weight, &max);
      }
      CopyAsyncWait<kTiles - 2>();
      SyncThreads();  // the tile and its factors are there, and nobody reads those before
      copy(tile + kTiles - 1);
      weight = load(tile + 1);
      if (ThreadId() >= width) continue;
      const int here =
          count - tile * kTileParts < kTileParts ? count - tile * kTileParts : kTileParts;
      const float* part = shared + tile % kTiles * kTileFloats + ThreadId();
      for (int i = 0; i < here; ++i) {
        const Factors f = factors[head * kTileParts + i];
        sum = Fma(sum, f.kept, f.sum);
        out = Fma(out, f.kept, part[i * kSlice] * f.added);
      }
    }
    CopyAsyncWait<0>();
    if (ThreadId() < width) parts[ThreadId()] = out * Divide(1.0f, sum);
  }

  // Of the part of each lane of a warp, in the order of the lanes; `max` is that of all before and
  // becomes that of all.
  static QSERVE_DEVICE Factors FactorsOf(Pair weight, float* max) {
    float larger = LaneId() == 0 ? Max(*max, weight.max) : weight.max;
    QSERVE_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) larger = Max(ShuffleUp(larger, delta), larger);
    const float before = ShuffleUp(larger, 1);
    const float shift = SoftmaxShift(larger);
    const float kept = Exp2((LaneId() == 0 ? *max : before) - shift);
    const float added = Exp2(weight.max - shift);
    *max = ShuffleFrom(larger, 31);
    return {kept, added, weight.sum * added, 0};
  }

  static QSERVE_DEVICE Vec16 Merge(const Params& p, int row, int column, int count) {
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
