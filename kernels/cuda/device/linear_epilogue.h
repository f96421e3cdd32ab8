// The end of a linear: partial sums of a split K are added up, then integers become outputs by the
// formula of LinearArgs (kernels/backend.h) and rows are written whole, by way of shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/linear_params.h"
#include "kernels/cuda/device/linear_ring.h"
#include "kernels/cuda/device/linear_shape.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

template <class Format, class Shape>
struct LinearEpilogue {
  using Sum = typename Format::Sum;
  static constexpr int kRowFragments = Shape::kWarpRows / 16;
  static constexpr int kTokenFragments = Shape::kWarpTokens / 8;
  static constexpr bool kInteger = sizeof(Sum) == 4 && static_cast<Sum>(0.5f) == 0;
  static constexpr int kPitch = kLinearPitch;

  // All threads of the block call; shared memory is free.
  static QSERVE_DEVICE void Run(const LinearParams& p, const LinearPlace& block,
                                Sum (&sums)[kRowFragments][kTokenFragments][4]) {
    const Place me = WhereAmI();
    if constexpr (kInteger) {
      if (p.splits > 1 && !AddUp(p, block, me, sums)) return;
    }
    auto* staged = reinterpret_cast<uint32_t*>(SharedMemory());
    Stage(staged, me, sums);
    SyncThreads();
    WriteRows(p, block, me, staged);
  }

 private:
  // A thread's place, as unsigned numbers' cheap division gives it.
  struct Place {
    int thread = 0;
    int lane = 0;
    int warp = 0;
    int first_channel = 0;  // of the warp's part of the block's tile
    int first_token = 0;
  };
  static QSERVE_DEVICE Place WhereAmI() {
    const auto thread = static_cast<unsigned>(ThreadIdAnew());
    const unsigned warp = thread / 32;
    return {.thread = static_cast<int>(thread),
            .lane = static_cast<int>(thread % 32),
            .warp = static_cast<int>(warp),
            .first_channel = static_cast<int>(warp % Shape::kRowWarps * Shape::kWarpRows),
            .first_token = static_cast<int>(warp / Shape::kRowWarps * Shape::kWarpTokens)};
  }
  static QSERVE_DEVICE uint32_t Bits(int32_t sum) { return static_cast<uint32_t>(sum); }
  static QSERVE_DEVICE uint32_t Bits(float sum) { return BitsOf(sum); }

  // Adds this block's sums to those of its tile. True for the block that comes last, which then has
  // the whole sums and leaves zeros behind for the next launch. Token fragments beyond the last
  // token are left out: their sums are zero.
  static QSERVE_DEVICE bool AddUp(const LinearParams& p, const LinearPlace& block, const Place& me,
                                  int32_t (&sums)[kRowFragments][kTokenFragments][4]) {
    const int tile = block.token_block * p.row_blocks + block.row_block;
    const int first_token = block.token_block * Shape::kTokens + me.first_token;
    int32_t* partial =
        p.partial_sums + static_cast<int64_t>(tile) * Shape::kRows * Shape::kTokens + me.thread;
    const auto each = [&](auto&& visit) {
      QSERVE_UNROLL
      for (int i = 0; i < kRowFragments; ++i) {
        QSERVE_UNROLL
        for (int j = 0; j < kTokenFragments; ++j) {
          if (first_token + j * 8 >= p.m) continue;
          QSERVE_UNROLL
          for (int e = 0; e < 4; ++e)
            visit(partial + ((i * kTokenFragments + j) * 4 + e) * Shape::kThreads, sums[i][j][e]);
        }
      }
    };
    each([](int32_t* to, int32_t& sum) { AtomicAdd(to, sum); });
    // The barrier gathers the block's additions behind one thread, whose fences order them before
    // its arrival and, in the block that arrives last, everybody's before what follows.
    SyncThreads();
    bool last = false;
    if (me.thread == 0) {
      ThreadFence();
      last = AtomicAdd(p.arrivals + tile, 1u) + 1 == static_cast<uint32_t>(p.splits);
      ThreadFence();
      if (last) p.arrivals[tile] = 0;
    }
    if (!SyncThreadsOr(last)) return false;
    ThreadFence();
    each([](const int32_t* from, int32_t& sum) { sum = *from; });
    each([](int32_t* to, int32_t&) { *to = 0; });
    return true;
  }

  static QSERVE_DEVICE void Stage(uint32_t* staged, const Place& me,
                                  const Sum (&sums)[kRowFragments][kTokenFragments][4]) {
    const int channel = me.first_channel + me.lane / 4;
    const int token = me.first_token + me.lane % 4 * 2;
    QSERVE_UNROLL
    for (int i = 0; i < kRowFragments; ++i) {
      QSERVE_UNROLL
      for (int j = 0; j < kTokenFragments; ++j) {
        QSERVE_UNROLL
        for (int e = 0; e < 4; ++e) {
          staged[(token + j * 8 + e % 2) * kPitch + channel + i * 16 + e / 2 * 8] =
              Bits(sums[i][j][e]);
        }
      }
    }
  }

  // What four neighbouring channels multiply and add.
  struct Channels {
    float scale[4] = {};
    float scaled_zero[4] = {};
    float bias[4] = {};
  };
  static QSERVE_DEVICE void LoadFour(const float* from, float (&to)[4]) {
    const Vec16 four = Load16(from);
    to[0] = FloatOf(four.x);
    to[1] = FloatOf(four.y);
    to[2] = FloatOf(four.z);
    to[3] = FloatOf(four.w);
  }

  // A warp writes one token's 128 channels at a time, a lane four of them.
  static QSERVE_DEVICE void WriteRows(const LinearParams& p, const LinearPlace& block,
                                      const Place& me, const uint32_t* staged) {
    const int channel = block.row_block * Shape::kRows + me.lane * 4;
    const int first_token = block.token_block * Shape::kTokens;
    Channels channels;
    if (channel < p.n) {
      if (p.scale != nullptr) LoadFour(p.scale + channel, channels.scale);
      if (p.scaled_zero != nullptr) LoadFour(p.scaled_zero + channel, channels.scaled_zero);
      if (p.bias != nullptr) LoadFour(p.bias + channel, channels.bias);
    }
    // Lane i fetches what belongs to the warp's i-th token.
    static_assert(Shape::kTokens / Shape::kWarps <= 32);
    const int my_token = first_token + me.lane * Shape::kWarps + me.warp;
    float my_scale = 0;
    int32_t my_row_sum = 0;
    if (kInteger && me.lane < Shape::kTokens / Shape::kWarps && my_token < p.m) {
      my_scale = p.x_scale[my_token];
      my_row_sum = p.x_row_sum[my_token];
    }
    for (int i = 0; i < Shape::kTokens / Shape::kWarps; ++i) {
      const int row = i * Shape::kWarps + me.warp;
      const float x_scale = ShuffleFrom(my_scale, i);
      const int32_t row_sum = ShuffleFrom(my_row_sum, i);
      if (first_token + row >= p.m || channel >= p.n) continue;
      const Vec16 four = Load16(staged + row * kPitch + me.lane * 4);
      const uint32_t bits[4] = {four.x, four.y, four.z, four.w};
      float out[4];
      QSERVE_UNROLL
      for (int c = 0; c < 4; ++c) out[c] = Output(p, channels, c, bits[c], x_scale, row_sum);
      WriteFour(p, first_token + row, channel, out);
    }
  }

  static QSERVE_DEVICE float Output(const LinearParams& p, const Channels& channels, int c,
                                    uint32_t sum, float x_scale, int32_t row_sum) {
    float y = 0;
    if constexpr (!kInteger) {
      y = FloatOf(sum);
    } else {
      // Unsigned, since 128 * row_sum and the sum with it may pass int32 on the way.
      if constexpr (Format::kGroups) sum -= 128u * static_cast<uint32_t>(row_sum);
      y = channels.scale[c] * static_cast<float>(static_cast<int32_t>(sum));
      if (p.scaled_zero != nullptr) y = y - channels.scaled_zero[c] * static_cast<float>(row_sum);
      y = x_scale * y;
    }
    return p.bias != nullptr ? y + channels.bias[c] : y;
  }

  static QSERVE_DEVICE void WriteFour(const LinearParams& p, int token, int channel,
                                      const float (&out)[4]) {
    const int64_t at = token * p.out_stride + channel;
    const bool whole = p.out_aligned && channel + 4 <= p.n;
    if (p.out_type == FloatType::kF32) {
      float* to = static_cast<float*>(p.out) + at;
      if (whole) {
        Store16(to, {BitsOf(out[0]), BitsOf(out[1]), BitsOf(out[2]), BitsOf(out[3])});
        return;
      }
      for (int c = 0; c < 4 && channel + c < p.n; ++c) to[c] = out[c];
      return;
    }
    uint16_t* to = static_cast<uint16_t*>(p.out) + at;
    uint16_t narrow[4];
    QSERVE_UNROLL
    for (int c = 0; c < 4; ++c) {
      narrow[c] = p.out_type == FloatType::kF16 ? FloatToHalfBits(out[c]) : FloatToBf16Bits(out[c]);
    }
    if (whole) {
      const uint32_t low = narrow[0] | static_cast<uint32_t>(narrow[1]) << 16;
      const uint32_t high = narrow[2] | static_cast<uint32_t>(narrow[3]) << 16;
      *reinterpret_cast<uint64_t*>(to) = low | static_cast<uint64_t>(high) << 32;
      return;
    }
    for (int c = 0; c < 4 && channel + c < p.n; ++c) to[c] = narrow[c];
  }
};

}  // namespace qserve::kernels::cuda
