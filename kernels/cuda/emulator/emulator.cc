// The emulator's scheduler and warp-wide operations. A fiber runs until it must wait for others;
// the scheduler then takes the next one that can run. Nothing is interrupted in between, so a
// launch is deterministic for its order seed.
#include "kernels/cuda/emulator/emulator.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/emulator/fiber.h"
#include "kernels/cuda/emulator/race_check.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cuda::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr uint8_t kPoison = 0xff;  // NaN in fp32, fp16 and bf16

// A queue in memory of its own that is never moved.
template <class T>
class Ring {
 public:
  bool empty() const { return begin_ == end_; }
  int size() const { return static_cast<int>(end_ - begin_); }
  void Push(const T& item) {
    QSERVE_CHECK_MSG(end_ - begin_ < kMost, "emulator: too many copies of one thread under way");
    items_[end_++ % kMost] = item;
  }
  T Pop() { return items_[begin_++ % kMost]; }
  void Clear() { begin_ = end_ = 0; }

 private:
  static constexpr size_t kMost = 128;
  std::array<T, kMost> items_ = {};
  size_t begin_ = 0, end_ = 0;
};

struct PendingCopy {
  uint8_t* to = nullptr;
  const uint8_t* from = nullptr;
  int bytes = 0;
  bool valid = false;
};

enum class Wait { kNothing, kWarp, kBlock };

// Where threads that wait for each other meet: what any did before it arrived comes before what any
// does after it left. Two points take turns, as some may arrive anew before others have left.
class Meeting {
 public:
  void Arrive() { HappensBefore(&points_[turn_ & 1u]); }
  void Leave(uint32_t turn) { HappensAfter(&points_[turn & 1u]); }
  uint32_t turn() const { return turn_; }
  void Complete() { ++turn_; }

 private:
  std::array<char, 2> points_ = {};
  uint32_t turn_ = 0;
};

struct ThreadState {
  Thread thread;
  std::unique_ptr<Fiber> fiber;
  Wait wait = Wait::kNothing;
  bool done = false;
  Ring<PendingCopy> copies;
  Ring<int> groups;     // copies of each committed group
  int open_copies = 0;  // not committed yet
  bool fenced = false;  // since the last atomic operation
  void* last_atomic = nullptr;
};

// What the lanes of a warp bring to an operation they do together.
struct WarpState {
  const char* operation = nullptr;
  int arrived = 0;
  std::array<void*, kLanes> arguments = {};
  Meeting meeting;  // of SyncWarp; no other operation orders memory
};

// SplitMix64: the shuffles of an order seed.
uint64_t NextRandom(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::vector<int> Order(int count, uint64_t& random) {
  std::vector<int> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (random == 0) return order;
  for (int i = count - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)],
              order[static_cast<size_t>(NextRandom(random) % static_cast<uint64_t>(i + 1))]);
  }
  return order;
}

class Running {
 public:
  Running(const LaunchShape& shape, const std::function<void()>& body)
      : shape_(shape), body_(body), random_(shape.order_seed) {
    QSERVE_CHECK(shape.threads > 0 && shape.threads <= kMaxThreads && shape.threads % kLanes == 0);
    QSERVE_CHECK(shape.grid.x > 0 && shape.grid.y > 0 && shape.grid.z > 0 &&
                 shape.shared_bytes >= 0 && shape.shared_bytes <= kMostShared);
    QSERVE_CHECK(shape.grid.y <= kMostRows && shape.grid.z <= kMostRows);
    threads_.resize(static_cast<size_t>(shape.threads));
    warps_.resize(threads_.size() / kLanes);
    block.grid = shape.grid;
    block.threads = shape.threads;
  }

  void RunAll() {
    const Index3 grid = shape_.grid;
    for (const int flat : Order(grid.x * grid.y * grid.z, random_)) {
      block.index = {flat % grid.x, flat / grid.x % grid.y, flat / grid.x / grid.y};
      RunBlock();
    }
    HappensAfter(&end_);
  }

  ThreadState& current() { return *current_; }
  WarpState& warp() { return warps_[static_cast<size_t>(current_->thread.index / kLanes)]; }

  bool IsShared(const void* address, int bytes) const {
    const auto* at = static_cast<const uint8_t*>(address);
    return at >= block.shared && at + bytes <= block.shared + shape_.shared_bytes;
  }

  // Leaves the fiber until the scheduler takes it up again.
  void Suspend(Wait wait) {
    current_->wait = wait;
    current_->fiber->Yield();
  }
  void WakeWarp() {
    const size_t first = static_cast<size_t>(current_->thread.index / kLanes * kLanes);
    for (size_t i = first; i < first + kLanes; ++i) threads_[i].wait = Wait::kNothing;
  }

  bool Barrier(bool predicate) {
    const uint32_t turn = barrier_.turn();
    barrier_.Arrive();
    barrier_predicate_ = barrier_predicate_ || predicate;
    if (++barrier_arrived_ < shape_.threads) {
      Suspend(Wait::kBlock);
    } else {
      for (ThreadState& thread : threads_) thread.wait = Wait::kNothing;
      barrier_result_ = std::exchange(barrier_predicate_, false);
      barrier_arrived_ = 0;
      barrier_.Complete();
    }
    barrier_.Leave(turn);
    return barrier_result_;  // nobody passes the next barrier before everybody has left this one
  }

  // What is before a fence comes before the atomic operation that follows it, and with that before
  // what is behind the fence of a thread whose atomic operation on the same word came later.
  void NoteAtomic(void* word) {
    if (std::exchange(current_->fenced, false)) HappensBefore(word);
    current_->last_atomic = word;
  }
  void Fence() {
    if (current_->last_atomic != nullptr) HappensAfter(current_->last_atomic);
    current_->fenced = true;
  }

  Block block;
  Counters counters;

 private:
  // What every GPU takes; shared memory of one block is that of the largest.
  static constexpr int kMostRows = 65535;  // of a grid in y and z
  static constexpr int64_t kMostShared = int64_t{227} << 10;
  static constexpr size_t kSharedAlignment = 128;

  // Exactly as long as asked for, so that an address sanitizer sees what is written beyond it; for
  // each block anew, so that blocks that share nothing are not seen to.
  void MakeSharedMemory() {
    const auto bytes = static_cast<size_t>(shape_.shared_bytes);
    void* memory = nullptr;
    QSERVE_CHECK(::posix_memalign(&memory, kSharedAlignment, bytes) == 0);
    std::memset(memory, kPoison, bytes);
    shared_memory_.reset(static_cast<uint8_t*>(memory));
    block.shared = shared_memory_.get();
  }

  void RunThread(ThreadState& state) {
    HappensAfter(&begin_);
    body_();
    HappensBefore(&end_);
    state.done = true;
  }

  void RunBlock() {
    MakeSharedMemory();
    HappensBefore(&begin_);
    for (size_t i = 0; i < threads_.size(); ++i) {
      ThreadState& state = threads_[i];
      state.thread.index = static_cast<int>(i);
      state.done = false;
      state.wait = Wait::kNothing;
      state.copies.Clear();
      state.groups.Clear();
      state.fenced = false;
      state.last_atomic = nullptr;
      state.fiber = std::make_unique<Fiber>([this, &state] { RunThread(state); });
    }
    int left = shape_.threads;
    while (left > 0) {
      int ran = 0;
      for (const int i : Order(shape_.threads, random_)) {
        ThreadState& state = threads_[static_cast<size_t>(i)];
        if (state.done || state.wait != Wait::kNothing) continue;
        current_ = &state;
        state.fiber->Resume();
        ++ran;
        if (state.done) {
          --left;
          QSERVE_CHECK_MSG(state.open_copies == 0,
                           "emulator: a copy was issued and never committed");
        }
      }
      QSERVE_CHECK_MSG(ran > 0,
                       left == shape_.threads
                           ? "emulator: deadlock: threads wait in different places"
                           : "emulator: deadlock: threads have left and others wait for them");
    }
    QSERVE_CHECK_MSG(barrier_arrived_ == 0, "emulator: a barrier was not reached by all threads");
  }

  const LaunchShape shape_;
  const std::function<void()>& body_;
  uint64_t random_;
  std::vector<ThreadState> threads_;
  std::vector<WarpState> warps_;
  std::unique_ptr<uint8_t, FreeForgotten> shared_memory_;
  ThreadState* current_ = nullptr;
  char begin_ = 0, end_ = 0;  // of a block, of all threads: points of race_check.h
  Meeting barrier_;
  int barrier_arrived_ = 0;
  bool barrier_predicate_ = false;
  bool barrier_result_ = false;
};

thread_local Running* running = nullptr;

// All 32 lanes call with the same operation and an argument each; whoever comes last combines them,
// then all go on.
template <class Argument, class Combine>
void TogetherAs(const char* operation, Argument& argument, Combine combine) {
  WarpState& warp = running->warp();
  const int lane = running->current().thread.index % kLanes;
  if (warp.arrived == 0) warp.operation = operation;
  QSERVE_CHECK_MSG(std::string_view(warp.operation) == operation,
                   "emulator: lanes of a warp are in different operations");
  warp.arguments[static_cast<size_t>(lane)] = &argument;
  if (++warp.arrived < kLanes) {
    running->Suspend(Wait::kWarp);
    return;
  }
  std::array<Argument*, kLanes> lanes = {};
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = static_cast<Argument*>(warp.arguments[i]);
  warp.arrived = 0;
  combine(lanes);
  running->WakeWarp();
}

struct ShuffleArgument {
  uint32_t value = 0;
  int from = 0;
  uint32_t result = 0;
};
struct MatrixArgument {
  const uint8_t* row = nullptr;
  uint32_t (*r)[4] = nullptr;
};
template <class Sum>
struct MmaArgument {
  Sum (*d)[4] = nullptr;
  const uint32_t (*a)[4] = nullptr;
  const uint32_t (*b)[2] = nullptr;
};

// Cycles beyond the first that eight 16-byte rows take: as many as the most rows that share four of
// the 32 banks.
int Conflicts(const std::array<const uint8_t*, 8>& rows) {
  std::array<int, 8> uses = {};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::find(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(i), rows[i]) !=
        rows.begin() + static_cast<std::ptrdiff_t>(i)) {
      continue;  // the same row again costs nothing
    }
    ++uses[static_cast<size_t>(rows[i] - running->block.shared) / 16 % 8];
  }
  return *std::max_element(uses.begin(), uses.end()) - 1;
}

int32_t Element8(const uint32_t* words, int byte, bool is_signed) {
  const uint32_t bits = words[byte / 4] >> (8 * (byte % 4)) & 0xffu;
  return is_signed ? static_cast<int8_t>(bits) : static_cast<int32_t>(bits);
}

double Element16(const uint32_t* words, int half) {
  return static_cast<double>(
      HalfToFloat(static_cast<uint16_t>(words[half / 2] >> (16 * (half % 2)))));
}

}  // namespace

Counters Launch(const LaunchShape& shape, const std::function<void()>& body) {
  QSERVE_CHECK_MSG(running == nullptr, "emulator: a launch inside a launch");
  Running launch(shape, body);
  running = &launch;
  launch.RunAll();
  running = nullptr;
  return launch.counters;
}

const Block& ThisBlock() { return running->block; }
const Thread& ThisThread() { return running->current().thread; }

bool BlockBarrier(bool predicate) { return running->Barrier(predicate); }

void SyncWarp() {
  Meeting& meeting = running->warp().meeting;
  const uint32_t turn = meeting.turn();
  meeting.Arrive();
  char nothing = 0;
  TogetherAs("SyncWarp", nothing, [&meeting](auto&) { meeting.Complete(); });
  meeting.Leave(turn);
}

void ThreadFence() { running->Fence(); }
void NoteAtomic(void* word) { running->NoteAtomic(word); }

uint32_t Shuffle(uint32_t value, int from_lane) {
  QSERVE_CHECK(from_lane >= 0 && from_lane < kLanes);
  ShuffleArgument argument = {value, from_lane, 0};
  TogetherAs("Shuffle", argument, [](auto& lanes) {
    for (ShuffleArgument* lane : lanes)
      lane->result = lanes[static_cast<size_t>(lane->from)]->value;
  });
  return argument.result;
}

uint32_t Ballot(bool predicate) {
  ShuffleArgument argument = {predicate ? 1u : 0u, 0, 0};
  TogetherAs("Ballot", argument, [](auto& lanes) {
    uint32_t votes = 0;
    for (size_t i = 0; i < kLanes; ++i) votes |= lanes[i]->value << i;
    for (ShuffleArgument* lane : lanes) lane->result = votes;
  });
  return argument.result;
}

void CopyAsync(void* shared, const void* from, int bytes, bool valid) {
  auto* to = static_cast<uint8_t*>(shared);
  const auto alignment = static_cast<uintptr_t>(bytes);
  QSERVE_CHECK(reinterpret_cast<uintptr_t>(to) % alignment == 0);
  QSERVE_CHECK_MSG(running->IsShared(to, bytes), "emulator: a copy to what is not shared memory");
  QSERVE_CHECK_MSG(from != nullptr, "emulator: even a copy of nothing names a device address");
  QSERVE_CHECK(reinterpret_cast<uintptr_t>(from) % alignment == 0);
  Writes(to, static_cast<size_t>(bytes));
  std::memset(to, kPoison, static_cast<size_t>(bytes));
  ThreadState& thread = running->current();
  thread.copies.Push({to, static_cast<const uint8_t*>(from), bytes, valid});
  ++thread.open_copies;
}

void CopyAsyncCommit() {
  ThreadState& thread = running->current();
  thread.groups.Push(std::exchange(thread.open_copies, 0));
}

void CopyAsyncWait(int pending_groups) {
  ThreadState& thread = running->current();
  while (thread.groups.size() > pending_groups) {
    for (int left = thread.groups.Pop(); left > 0; --left) {
      const PendingCopy copy = thread.copies.Pop();
      const auto bytes = static_cast<size_t>(copy.bytes);
      Writes(copy.to, bytes);
      if (copy.valid) {
        Reads(copy.from, bytes);
        std::memcpy(copy.to, copy.from, bytes);
        running->counters.copied_bytes += copy.bytes;
      } else {
        std::memset(copy.to, 0, bytes);
      }
    }
  }
}

void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row, bool transposed) {
  QSERVE_CHECK(reinterpret_cast<uintptr_t>(shared_row) % 16 == 0);
  QSERVE_CHECK_MSG(running->IsShared(shared_row, 16), "emulator: a row outside shared memory");
  Reads(shared_row, 16);
  MatrixArgument argument = {static_cast<const uint8_t*>(shared_row), &r};
  TogetherAs(transposed ? "LoadMatrixX4Transposed" : "LoadMatrixX4", argument,
             [transposed](auto& lanes) {
               for (size_t matrix = 0; matrix < 4; ++matrix) {
                 std::array<const uint8_t*, 8> rows = {};
                 for (size_t i = 0; i < 8; ++i) rows[i] = lanes[matrix * 8 + i]->row;
                 ++running->counters.load_matrix_phases;
                 running->counters.load_matrix_conflicts += Conflicts(rows);
                 for (size_t lane = 0; lane < kLanes; ++lane) {
                   const size_t g = lane / 4, c = lane % 4;
                   uint32_t& to = (*lanes[lane]->r)[matrix];
                   if (transposed) {
                     uint16_t pair[2];
                     std::memcpy(&pair[0], rows[2 * c] + 2 * g, 2);
                     std::memcpy(&pair[1], rows[2 * c + 1] + 2 * g, 2);
                     to = uint32_t{pair[0]} | uint32_t{pair[1]} << 16;
                   } else {
                     std::memcpy(&to, rows[g] + 4 * c, 4);
                   }
                 }
               }
             });
}

void MmaInt8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool signed_a) {
  MmaArgument<int32_t> argument = {&d, &a, &b};
  TogetherAs(signed_a ? "MmaS8S8" : "MmaU8S8", argument, [signed_a](auto& lanes) {
    ++running->counters.mma_int8;
    std::array<std::array<int32_t, 32>, 16> rows = {};
    std::array<std::array<int32_t, 32>, 8> columns = {};
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t g = lane / 4, c = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const size_t k = 4 * c + static_cast<size_t>(i);
        const uint32_t* words = *lanes[lane]->a;
        rows[g][k] = Element8(words + 0, i, signed_a);
        rows[g + 8][k] = Element8(words + 1, i, signed_a);
        rows[g][16 + k] = Element8(words + 2, i, signed_a);
        rows[g + 8][16 + k] = Element8(words + 3, i, signed_a);
        columns[g][k] = Element8(*lanes[lane]->b + 0, i, true);
        columns[g][16 + k] = Element8(*lanes[lane]->b + 1, i, true);
      }
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        const auto& row = rows[lane / 4 + (i / 2) * 8];
        const auto& column = columns[2 * (lane % 4) + i % 2];
        int32_t sum = 0;
        for (size_t k = 0; k < 32; ++k) sum += row[k] * column[k];
        int32_t& to = (*lanes[lane]->d)[i];
        to = static_cast<int32_t>(static_cast<uint32_t>(to) + static_cast<uint32_t>(sum));
      }
    }
  });
}

void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaArgument<float> argument = {&d, &a, &b};
  TogetherAs("MmaF16", argument, [](auto& lanes) {
    ++running->counters.mma_f16;
    std::array<std::array<double, 16>, 16> rows = {};
    std::array<std::array<double, 16>, 8> columns = {};
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t g = lane / 4, c = lane % 4;
      for (int i = 0; i < 2; ++i) {
        const size_t k = 2 * c + static_cast<size_t>(i);
        const uint32_t* words = *lanes[lane]->a;
        rows[g][k] = Element16(words + 0, i);
        rows[g + 8][k] = Element16(words + 1, i);
        rows[g][8 + k] = Element16(words + 2, i);
        rows[g + 8][8 + k] = Element16(words + 3, i);
        columns[g][k] = Element16(*lanes[lane]->b + 0, i);
        columns[g][8 + k] = Element16(*lanes[lane]->b + 1, i);
      }
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        const auto& row = rows[lane / 4 + (i / 2) * 8];
        const auto& column = columns[2 * (lane % 4) + i % 2];
        float& to = (*lanes[lane]->d)[i];
        double sum = static_cast<double>(to);
        for (size_t k = 0; k < 16; ++k) sum += row[k] * column[k];
        to = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace qserve::kernels::cuda::emulator
