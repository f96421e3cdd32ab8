// The emulator itself: what kernels' tests rely on. Fragments are checked against plain matrix
// products, and what is undefined on a GPU must end the program.
#include "kernels/cuda/emulator/emulator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/device/kernel.h"

namespace qserve::kernels::cuda {
namespace {

// Reverses the block's 128 numbers by way of shared memory and adds the neighbouring lane's.
struct Reverse {
  struct Params {
    int32_t* out = nullptr;
    const int32_t* in = nullptr;
  };
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static void Run(const Params& p) {
    auto* shared = reinterpret_cast<int32_t*>(SharedMemory());
    const int thread = ThreadId(), first = BlockX() * kThreads;
    CopyAsync4(shared + thread, p.in + first + thread);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    SyncThreads();
    const int32_t mine = shared[kThreads - 1 - thread];
    p.out[first + thread] = mine + ShuffleXor(mine, 1);
  }
};

TEST(Emulator, RunsBlocksWhenTheStreamIsWaitedFor) {
  std::vector<int32_t> in(512), out(512, -1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int32_t>(i * i);
  for (const uint64_t seed : {0u, 1u, 2u, 3u}) {
    emulator::Stream stream(seed);
    std::fill(out.begin(), out.end(), -1);
    ASSERT_EQ(Launch<Reverse>(&stream, {.x = 4}, 512, {out.data(), in.data()}), 0);
    EXPECT_EQ(out[5], -1) << "it ran before it was waited for";
    stream.Synchronize();
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t block = i / 128 * 128, thread = i % 128;
      ASSERT_EQ(out[i], in[block + 127 - thread] + in[block + 127 - (thread ^ 1u)]);
    }
    EXPECT_EQ(stream.counters().copied_bytes, 512 * 4);
  }
}

TEST(Emulator, RecordedWorkRunsWhenReplayed) {
  std::vector<int32_t> in(128, 1), out(128, 0);
  emulator::Stream stream;
  stream.BeginRecording();
  Launch<Reverse>(&stream, {}, 512, {out.data(), in.data()});
  const auto graph = stream.EndRecording();
  stream.Synchronize();
  EXPECT_EQ(out[0], 0);
  in.assign(128, 3);
  for (const auto& work : graph) stream.Enqueue(work);
  stream.Synchronize();
  EXPECT_EQ(out[0], 6);
}

// One warp multiplies A [16][32] by B [32][8], operands gathered as simt.h says.
TEST(Emulator, Int8FragmentsAreThoseOfThePtxIsa) {
  std::vector<uint8_t> a(16 * 32);
  std::vector<int8_t> b(32 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i * 37 + 11);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int8_t>(i * 29 + 5);
  std::vector<int32_t> product(16 * 8);
  emulator::Launch({.threads = 32}, [&] {
    const auto g = static_cast<size_t>(LaneId() / 4), c = static_cast<size_t>(LaneId() % 4);
    uint32_t fragment_a[4], fragment_b[2];
    const auto word = [&](size_t row, size_t k) {
      uint32_t w = 0;
      std::memcpy(&w, &a[row * 32 + k], 4);
      return w;
    };
    fragment_a[0] = word(g, 4 * c);
    fragment_a[1] = word(g + 8, 4 * c);
    fragment_a[2] = word(g, 16 + 4 * c);
    fragment_a[3] = word(g + 8, 16 + 4 * c);
    for (size_t half = 0; half < 2; ++half) {
      fragment_b[half] = 0;
      for (size_t i = 0; i < 4; ++i) {
        const auto byte = static_cast<uint8_t>(b[(16 * half + 4 * c + i) * 8 + g]);
        fragment_b[half] |= uint32_t{byte} << (8 * i);
      }
    }
    int32_t d[4] = {1000, 1000, 1000, 1000};
    MmaU8S8(d, fragment_a, fragment_b);
    product[g * 8 + 2 * c] = d[0];
    product[g * 8 + 2 * c + 1] = d[1];
    product[(g + 8) * 8 + 2 * c] = d[2];
    product[(g + 8) * 8 + 2 * c + 1] = d[3];
  });
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      int32_t sum = 1000;
      for (size_t k = 0; k < 32; ++k) sum += int32_t{a[row * 32 + k]} * b[k * 8 + column];
      EXPECT_EQ(product[row * 8 + column], sum) << row << " " << column;
    }
  }
}

TEST(Emulator, LoadMatrixCountsBankConflicts) {
  const auto conflicts = [](int row_bytes) {
    return emulator::Launch({.threads = 32, .shared_bytes = 32 * 128},
                            [row_bytes] {
                              uint32_t r[4];
                              LoadMatrixX4(r, SharedMemory() + LaneId() * row_bytes);
                            })
        .load_matrix_conflicts;
  };
  EXPECT_EQ(conflicts(16), 0);
  EXPECT_EQ(conflicts(128), 4 * 7) << "eight rows in the same banks";
}

TEST(Emulator, LoadMatrixTransposes) {
  std::vector<uint32_t> plain(32), transposed(32);
  emulator::Launch({.threads = 32, .shared_bytes = 512}, [&] {
    auto* elements = reinterpret_cast<uint16_t*>(SharedMemory());
    for (int i = LaneId(); i < 256; i += 32) elements[i] = static_cast<uint16_t>(i);
    SyncWarp();
    uint32_t r[4], t[4];
    LoadMatrixX4(r, SharedMemory() + LaneId() * 16);
    LoadMatrixX4Transposed(t, SharedMemory() + LaneId() * 16);
    plain[static_cast<size_t>(LaneId())] = r[2];
    transposed[static_cast<size_t>(LaneId())] = t[2];
  });
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, c = lane % 4;
    EXPECT_EQ(plain[lane], (128 + 8 * g + 2 * c) | (128 + 8 * g + 2 * c + 1) << 16);
    EXPECT_EQ(transposed[lane], (128 + 8 * (2 * c) + g) | (128 + 8 * (2 * c + 1) + g) << 16);
  }
}

TEST(Emulator, CopiesArriveWhenWaitedForAndNotBefore) {
  const std::vector<uint32_t> from(32, 7);
  std::vector<uint32_t> early(32), late(32), absent(32);
  emulator::Launch({.threads = 32, .shared_bytes = 256}, [&] {
    auto* shared = reinterpret_cast<uint32_t*>(SharedMemory());
    const auto lane = static_cast<size_t>(LaneId());
    CopyAsync4(shared + lane, &from[lane]);
    CopyAsyncCommit();
    CopyAsync4(shared + 32 + lane, &from[lane], false);
    CopyAsyncCommit();
    early[lane] = shared[lane];
    CopyAsyncWait<1>();
    late[lane] = shared[lane];
    CopyAsyncWait<0>();
    absent[lane] = shared[32 + lane];
  });
  EXPECT_EQ(early[3], 0xffffffffu);
  EXPECT_EQ(late[3], 7u);
  EXPECT_EQ(absent[3], 0u);
}

TEST(EmulatorDeathTest, WhatIsUndefinedEndsTheProgram) {
  EXPECT_DEATH(emulator::Launch({.threads = 32},
                                [] {
                                  if (LaneId() < 16)
                                    SyncWarp();
                                  else
                                    Ballot(true);
                                }),
               "different operations");
  EXPECT_DEATH(emulator::Launch({.threads = 64},
                                [] {
                                  if (WarpId() == 0) SyncThreads();
                                }),
               "deadlock");
  EXPECT_DEATH(
      emulator::Launch({.threads = 32, .shared_bytes = 64}, [] { Load16(SharedMemory() + 4); }),
      "% 16 == 0");
}

}  // namespace
}  // namespace qserve::kernels::cuda
