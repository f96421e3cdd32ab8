// A loop over independent items on several threads. Which thread takes an item is open, what an
// item computes is not: results never depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace qserve::quantizer {

// Calls body(item) for 0 <= item < count; returns when all have ended. `body` must not throw.
template <class Body>
void ParallelFor(int threads, int64_t count, const Body& body) {
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t item = next++; item < count; item = next++) body(item);
  };
  std::vector<std::jthread> others;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(work);
  work();
}

}  // namespace qserve::quantizer
