// The thread pool: every item once, the same cut every time.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace qserve::kernels::cpu {
namespace {

struct Range {
  int64_t begin, end;
  int thread;
  bool operator==(const Range&) const = default;
};

std::vector<Range> RangesOf(ThreadPool& pool, int64_t count, int64_t grain) {
  std::vector<Range> ranges(static_cast<size_t>(pool.size()), Range{-1, -1, -1});
  pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
    ranges[static_cast<size_t>(thread)] = {begin, end, thread};
  });
  return ranges;
}

TEST(ThreadPool, VisitsEveryItemOnceInOrderOfThreadsAtMultiplesOfTheGrain) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t grain : {1, 3, 16}) {
      for (int64_t count = 0; count < 70; ++count) {
        int64_t next = 0;
        for (const Range& range : RangesOf(pool, count, grain)) {
          if (range.thread < 0) continue;
          ASSERT_EQ(range.begin, next);
          ASSERT_EQ(range.begin % grain, 0);
          ASSERT_LT(range.begin, range.end);
          next = range.end;
        }
        ASSERT_EQ(next, count);
      }
    }
  }
}

TEST(ThreadPool, CutsTheSameWayEveryTime) {
  ThreadPool pool(3);
  const std::vector<Range> first = RangesOf(pool, 100, 7);
  for (int i = 0; i < 200; ++i) ASSERT_EQ(RangesOf(pool, 100, 7), first);
}

TEST(ThreadPool, WritesOfOneCallAreSeenByTheNextAndByTheCaller) {
  ThreadPool pool(4);
  std::vector<int64_t> values(1000, 0);
  std::vector<int64_t> mirrored(1000, 0);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.ParallelFor(1000, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] = round * 1000 + i;
    });
    pool.ParallelFor(1000, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        mirrored[static_cast<size_t>(i)] = values[static_cast<size_t>(999 - i)];
    });
    for (int64_t i = 0; i < 1000; ++i)
      ASSERT_EQ(mirrored[static_cast<size_t>(i)], round * 1000 + 999 - i);
  }
}

// Long enough apart that the threads have gone to sleep, not only spun.
TEST(ThreadPool, WakesThreadsThatSleep) {
  ThreadPool pool(3);
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    std::atomic<int> calls{0};
    pool.ParallelFor(3, 1, [&](int64_t, int64_t, int) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      ++calls;
    });
    EXPECT_EQ(calls, 3);
  }
}

std::vector<int> Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  std::vector<int> processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<size_t>(cpu), &set)) processors.push_back(cpu);
  }
  return processors;
}

// Where each thread of the pool may run, as it says itself.
std::vector<std::vector<int>> ProcessorsOf(ThreadPool& pool) {
  std::vector<std::vector<int>> of(static_cast<size_t>(pool.size()));
  pool.ParallelFor(pool.size(), 1, [&](int64_t, int64_t, int thread) {
    of[static_cast<size_t>(thread)] = Processors();
  });
  return of;
}

TEST(ThreadPool, BindsEachThreadToTheProcessorNamedAndNobodyElse) {
  const std::vector<int> all = Processors();
  std::vector<std::vector<int>> before, bound;
  Status refused, absent, impossible;
  std::thread([&] {  // thread 0: binding it must not outlive the test
    ThreadPool pool(3);
    before = ProcessorsOf(pool);
    for (int thread = 2; thread >= 0; --thread) {
      const int processor = all[static_cast<size_t>(thread) % all.size()];
      const Status status = pool.BindThread(thread, processor);
      EXPECT_TRUE(status.ok()) << status.message();
    }
    bound = ProcessorsOf(pool);
    absent = pool.BindThread(3, all[0]);
    impossible = pool.BindThread(1, -1);
    refused = pool.BindThread(1, 65535);
    EXPECT_EQ(ProcessorsOf(pool), bound);
  })
      .join();
  EXPECT_EQ(before, std::vector<std::vector<int>>(3, all));
  for (size_t thread = 0; thread < 3; ++thread)
    EXPECT_EQ(bound[thread], std::vector<int>{all[thread % all.size()]});
  EXPECT_EQ(absent.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(impossible.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.code(), StatusCode::kDevice);
  EXPECT_EQ(Processors(), all);
}

}  // namespace
}  // namespace qserve::kernels::cpu
