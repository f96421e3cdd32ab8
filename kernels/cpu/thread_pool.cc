// The threads of one CPU backend: a generation counter starts them, a countdown ends a call. Both
// are spun on briefly, since a step issues hundreds of short calls, and then slept on, since a
// server waits for requests most of its life.
#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/thread_pause.h"

namespace qserve::kernels::cpu {
namespace {

// How long a variable is looked at before sleeping on it: longer than what a step does on one
// thread alone, since waking a thread costs more than most operations.
constexpr std::chrono::microseconds kSpin{100};
constexpr int kLooksPerClock = 64;  // the clock is dearer than a look

// The largest set of processors that the kernel can be built for, with room to spare.
constexpr int kMostProcessors = 65536;

template <class T>
void WaitWhileEqual(const std::atomic<T>& value, T old) {
  const auto look = [&] {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      Pause();
    }
    return false;
  };
  if (look()) return;
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < kSpin) {
    if (look()) return;
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Shared {
  using Body = std::function<void(int64_t, int64_t, int)>;

  int threads = 1;
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int> remaining{0};
  // Written by the caller before `generation` moves on, read by the threads after.
  const Body* body = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  bool stopping = false;
  std::vector<std::thread> workers;

  // Range t of the fixed cut: grains are dealt out evenly, the first ranges get one more.
  void RunRange(int thread) const {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t each = grains / threads;
    const int64_t extra = grains % threads;
    const int64_t first = thread * each + std::min<int64_t>(thread, extra);
    const int64_t last = first + each + (thread < extra ? 1 : 0);
    if (first < last) (*body)(first* grain, std::min(count, last * grain), thread);
  }

  void Work(int thread) {
    for (uint32_t seen = 0;; ++seen) {
      WaitWhileEqual(generation, seen);
      if (stopping) return;
      RunRange(thread);
      if (remaining.fetch_sub(1, std::memory_order_acq_rel) == 1) remaining.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : shared_(std::make_unique<Shared>()) {
  QSERVE_CHECK(threads >= 1);
  shared_->threads = threads;
  for (int t = 1; t < threads; ++t)
    shared_->workers.emplace_back([shared = shared_.get(), t] { shared->Work(t); });
}

ThreadPool::~ThreadPool() {
  shared_->stopping = true;
  shared_->generation.fetch_add(1, std::memory_order_release);
  shared_->generation.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

int ThreadPool::size() const { return shared_->threads; }

Status ThreadPool::BindThread(int thread, int processor) {
  if (thread < 0 || thread >= size() || processor < 0 || processor >= kMostProcessors) {
    return InvalidArgument("cpu: thread " + std::to_string(thread) +
                           " cannot be bound to processor " + std::to_string(processor));
  }
  const pthread_t handle = thread == 0
                               ? pthread_self()
                               : shared_->workers[static_cast<size_t>(thread - 1)].native_handle();
  cpu_set_t* set = CPU_ALLOC(kMostProcessors);
  if (set == nullptr) return {StatusCode::kOutOfMemory, "cpu: no memory for a set of processors"};
  const size_t bytes = CPU_ALLOC_SIZE(kMostProcessors);
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(static_cast<size_t>(processor), bytes, set);
  const int error = pthread_setaffinity_np(handle, bytes, set);
  CPU_FREE(set);
  if (error == 0) return {};
  return {StatusCode::kDevice, "cpu: thread " + std::to_string(thread) +
                                   " cannot be bound to processor " + std::to_string(processor) +
                                   ": " + std::strerror(error)};
}

void ThreadPool::ParallelFor(
    int64_t count, int64_t grain,
    const std::function<void(int64_t begin, int64_t end, int thread)>& body) {
  if (count <= 0) return;
  Shared& shared = *shared_;
  shared.body = &body;
  shared.count = count;
  shared.grain = std::max<int64_t>(1, grain);
  if (shared.threads == 1 || count <= shared.grain) {
    shared.RunRange(0);  // one grain is thread 0's by the same cut
    return;
  }
  shared.remaining.store(shared.threads - 1, std::memory_order_relaxed);
  shared.generation.fetch_add(1, std::memory_order_release);
  shared.generation.notify_all();
  shared.RunRange(0);
  for (int left = shared.remaining.load(std::memory_order_acquire); left != 0;
       left = shared.remaining.load(std::memory_order_acquire)) {
    WaitWhileEqual(shared.remaining, left);
  }
}

}  // namespace qserve::kernels::cpu
