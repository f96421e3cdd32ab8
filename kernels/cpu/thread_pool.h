// The threads of one CPU backend. Work is cut the same way every time: `count` items into as many
// contiguous ranges as there are threads, range t always on thread t, so that memory first touched
// by a thread stays near it. Which thread computes an item never changes a bit of the result: items
// are independent, or combined in an order of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/status.h"

namespace qserve::kernels::cpu {

class ThreadPool {
 public:
  // threads >= 1; the caller of ParallelFor is thread 0, threads - 1 more are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // From now on `thread` runs on `processor` alone; thread 0 is whoever calls this, and threads
  // that it starts later inherit it. InvalidArgument for a thread that there is not; kDevice where
  // the system refuses, as it does for a processor that this process may not use.
  Status BindThread(int thread, int processor);

  // Calls body(begin, end, thread) for every non-empty range and returns when all are done. Ranges
  // start at multiples of `grain`. Not reentrant; one caller at a time. Waiting threads spin for
  // 100 microseconds, then sleep.
  void ParallelFor(int64_t count, int64_t grain,
                   const std::function<void(int64_t begin, int64_t end, int thread)>& body);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace qserve::kernels::cpu
