// Times work on a GPU from the host: recorded once as a graph, replayed, waited for. Medians over
// runs; one thread. Used by the GPU benchmark.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace qserve::bench {

inline void OrDie(const kernels::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "gpu_bench: %s\n", status.message().c_str());
  std::exit(1);
}

template <class T>
T OrDie(kernels::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

class GpuTimer {
 public:
  explicit GpuTimer(kernels::Backend* gpu) : gpu_(gpu) {}

  // Seconds of one of the `count` equal pieces of work in `step`: the middle of several runs.
  double Seconds(int count, const std::function<void()>& step) {
    const uint64_t key = ++keys_;
    OrDie(gpu_->Record(key, step));
    for (int i = 0; i < 2; ++i) OrDie(gpu_->Run(key, step));
    std::vector<double> seconds;
    double total = 0;
    while (seconds.size() < kLeastRuns || (total < kLeastSeconds && seconds.size() < kMostRuns)) {
      const auto begin = std::chrono::steady_clock::now();
      OrDie(gpu_->Run(key, step));
      gpu_->Synchronize();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      seconds.push_back(taken.count());
      total += taken.count();
    }
    std::nth_element(seconds.begin(), seconds.begin() + std::ssize(seconds) / 2, seconds.end());
    return seconds[seconds.size() / 2] / count;
  }

 private:
  static constexpr size_t kLeastRuns = 7;
  static constexpr size_t kMostRuns = 200;
  static constexpr double kLeastSeconds = 0.2;
  kernels::Backend* gpu_;
  uint64_t keys_ = 0;
};

}  // namespace qserve::bench
