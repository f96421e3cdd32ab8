// Measures the machine. Main thread and the threads it starts.
#include "bench/machine_peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/thread_pool.h"

namespace qserve::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Timed at once: short, so that on a busy machine some piece is read without an interruption.
constexpr int64_t kPiece = int64_t{16} << 20;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

double ReadBandwidth(int threads, int64_t bytes, int repeats) {
  auto memory = kernels::cpu::AlignedMemory::Allocate(bytes);
  if (memory.data() == nullptr) return 0;
  kernels::cpu::ThreadPool pool(threads);
  const int64_t words = bytes / 8;
  auto* data = memory.as<uint64_t>();
  pool.ParallelFor(words, 512, [&](int64_t begin, int64_t end, int) { std::fill(data + begin, data + end, uint64_t{1}); });
  std::atomic<uint64_t> total{0};
  double best = 0;
  for (int64_t piece = 0; piece < repeats * bytes / kPiece; ++piece) {
    const uint64_t* from = data + piece % (bytes / kPiece) * (kPiece / 8);
    const auto start = Clock::now();
    pool.ParallelFor(kPiece / 8, 512, [&](int64_t begin, int64_t end, int) {
      uint64_t sums[8] = {};
      for (int64_t w = begin; w + 8 <= end; w += 8) {
        __builtin_prefetch(from + w + 256);
        for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += from[w + lane];
      }
      uint64_t sum = 0;
      for (const uint64_t lane : sums) sum += lane;
      total += sum;
    });
    best = std::max(best, static_cast<double>(kPiece) / SecondsSince(start) * 1e-9);
  }
  return total.load() == 0 ? 0 : best;  // the sum is looked at, so that the reading cannot be left out
}

double IntegerPeak(PeakLoop loop, int threads, int repeats) {
  if (loop == nullptr) return 0;
  kernels::cpu::ThreadPool pool(threads);
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    std::vector<int64_t> done(static_cast<size_t>(threads));
    const auto start = Clock::now();
    pool.ParallelFor(threads, 1, [&](int64_t, int64_t, int t) { done[static_cast<size_t>(t)] = loop(50000); });
    const double seconds = SecondsSince(start);
    int64_t total = 0;
    for (const int64_t count : done) total += count;
    best = std::max(best, 2.0 * static_cast<double>(total) / seconds * 1e-9);
  }
  return best;
}

}  // namespace qserve::bench
