// Runs CUDA kernels on the host, slowly and strictly: every thread of a block is a fiber, warp-wide
// operations wait for all 32 lanes, barriers for all threads, asynchronous copies arrive when they
// are waited for and not before. What is undefined on a GPU ends the program with the reason: lanes
// in different operations, threads that left before a barrier, misaligned addresses, deadlock. Used
// by device/simt_host.h and by tests; one launch at a time per host thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cuda/stream.h"

namespace qserve::kernels::cuda::emulator {

struct Index3 {
  int x = 0;
  int y = 0;
  int z = 0;
};

struct LaunchShape {
  Index3 grid = {1, 1, 1};
  int threads = 32;  // of a block; a multiple of 32, at most 1024
  int64_t shared_bytes = 0;
  // In which order blocks run, and threads between two barriers: any order is legal, so tests try
  // several. 0: ascending.
  uint64_t order_seed = 0;
};

// What a launch did, summed over its blocks: for tests of a kernel's work and of its shared-memory
// layout.
struct Counters {
  int64_t mma_int8 = 0;
  int64_t mma_f16 = 0;
  int64_t load_matrix_phases = 0;     // eight rows each; at best one cycle
  int64_t load_matrix_conflicts = 0;  // cycles beyond that
  int64_t copied_bytes = 0;           // by asynchronous copies
};

// Runs `body` once for every thread of every block; shared memory is filled with a pattern (NaN as
// fp32 or fp16) before each block.
Counters Launch(const LaunchShape& shape, const std::function<void()>& body);

// Work in order, like a CUDA stream: what is enqueued runs when somebody synchronizes, not before,
// so that a forgotten wait shows; while it records, work is kept for a graph and does not run.
// StreamHandle points to one of these. One host thread uses it.
class Stream {
 public:
  explicit Stream(uint64_t order_seed = 0) : order_seed_(order_seed) {}
  void Enqueue(std::function<void()> work);
  void Synchronize();
  void BeginRecording();
  std::vector<std::function<void()>> EndRecording();
  bool recording() const { return recording_; }
  uint64_t order_seed() const { return order_seed_; }
  const Counters& counters() const { return counters_; }  // of all launches that ran
  void Count(const Counters& launch);

 private:
  const uint64_t order_seed_;
  std::vector<std::function<void()>> waiting_;
  std::vector<std::function<void()>> recorded_;
  bool recording_ = false;
  Counters counters_;
};

// Enqueues a launch; `body` is kept. Never fails.
DeviceError Enqueue(StreamHandle stream, LaunchShape shape, std::function<void()> body);

// Below: of the thread that runs, inside Launch only.

struct Block {
  Index3 index;
  Index3 grid;
  int threads = 0;
  uint8_t* shared = nullptr;
};
struct Thread {
  int index = 0;
};
const Block& ThisBlock();
const Thread& ThisThread();

bool BlockBarrier(bool predicate);  // the or of all predicates
void SyncWarp();
void ThreadFence();
void NoteAtomic(void* word);  // before each atomic operation
uint32_t Shuffle(uint32_t value, int from_lane);
uint32_t Ballot(bool predicate);
void CopyAsync(void* shared, const void* from, int bytes, bool valid);
void CopyAsyncCommit();
void CopyAsyncWait(int pending_groups);
void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row, bool transposed);
void MmaInt8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool signed_a);
void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

}  // namespace qserve::kernels::cuda::emulator
