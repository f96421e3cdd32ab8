// Measures the machine. The main thread and those it starts.
#include "bench/machine_peaks.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace qserve::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Timed at once: short, so that on a busy machine some piece is read without an interruption.
constexpr int64_t kPieceWords = int64_t{2} << 20;

// Runs work(round, thread) on all threads at once, `rounds` times; the seconds of the fastest
// round.
double FastestRound(int threads, int64_t rounds, const std::function<void(int64_t, int)>& work) {
  std::barrier meeting(threads);
  double best = 1e30;
  const auto run = [&](int thread) {
    for (int64_t round = 0; round < rounds; ++round) {
      meeting.arrive_and_wait();
      const auto start = Clock::now();
      work(round, thread);
      meeting.arrive_and_wait();
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      if (thread == 0) best = std::min(best, seconds);
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  return best;
}

uint64_t SumOf(const uint64_t* words, int64_t count) {
  uint64_t a = 0, b = 0, c = 0, d = 0;  // variables, not an array: they stay in registers
  for (int64_t w = 0; w + 8 <= count; w += 8) {
    __builtin_prefetch(words + w + 512);
    a += words[w] ^ words[w + 4];
    b += words[w + 1] ^ words[w + 5];
    c += words[w + 2] ^ words[w + 6];
    d += words[w + 3] ^ words[w + 7];
  }
  return a + b + c + d + 1;
}

}  // namespace

double ReadBandwidth(int threads, const void* data, int64_t bytes, int repeats) {
  const int64_t pieces = std::max<int64_t>(1, bytes / 8 / kPieceWords);
  const auto* words = static_cast<const uint64_t*>(data);
  const int64_t part = kPieceWords / threads;
  std::atomic<uint64_t> total{0};
  const double seconds = FastestRound(threads, repeats * pieces, [&](int64_t round, int thread) {
    total += SumOf(words + round % pieces * kPieceWords + thread * part, part);
  });
  // The sum is looked at, so that the reading cannot be left out.
  return total.load() == 0 ? 0 : static_cast<double>(threads * part * 8) / seconds * 1e-9;
}

double IntegerPeak(PeakLoop loop, int threads, int repeats) {
  if (loop == nullptr) return 0;
  std::atomic<int64_t> products{0};
  const double seconds =
      FastestRound(threads, repeats, [&](int64_t, int) { products = loop(50000); });
  return 2.0 * static_cast<double>(products.load() * threads) / seconds * 1e-9;
}

}  // namespace qserve::bench
