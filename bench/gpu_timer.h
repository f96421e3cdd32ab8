// Times work on a GPU from the host: recorded as a graph that is long enough for the host not to
// show, replayed with the next one always enqueued, and timed from end to end. One thread. Used by
// the GPU benchmark.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace qserve::bench {

// Seconds of one piece of work.
struct Timing {
  double median = 0;
  double min = 0;
  double max = 0;
  int runs = 0;
};

struct TimerOptions {
  int least_runs = 7;
  int most_runs = 200;
  double least_seconds = 0.2;          // of all runs together
  double least_graph_seconds = 0.001;  // shorter work is repeated inside the graph
  int most_pieces = 2000;              // but to no more pieces than these
};

class GpuTimer {
 public:
  GpuTimer(kernels::Backend* gpu, const TimerOptions& options) : gpu_(gpu), options_(options) {}

  // Of one of the `pieces` equal pieces of work in `step`, which calls operations. `first` is done
  // once in each graph before them, and counts as part of them. What a step or its recording
  // returns.
  kernels::StatusOr<Timing> Measure(int pieces, const std::function<void()>& step,
                                    const std::function<void()>& first = {}) {
    int rounds = 1;
    const std::function<void()> steps = [&] {
      if (first) first();
      for (int i = 0; i < rounds; ++i) step();
    };
    const uint64_t once = ++keys_;
    if (kernels::Status status = gpu_->Record(once, steps); !status.ok()) return status;
    const kernels::StatusOr<double> alone = WarmUp(once, steps);
    if (!alone.ok()) return alone.status();
    const double wanted = std::ceil(options_.least_graph_seconds / std::max(*alone, 1e-7));
    const int most = std::max(1, options_.most_pieces / pieces);
    if (wanted <= 1 || most == 1) return Replay(once, steps, pieces);
    rounds = static_cast<int>(std::min<double>(most, wanted));
    const uint64_t repeated = ++keys_;
    if (kernels::Status status = gpu_->Record(repeated, steps); !status.ok()) return status;
    return Replay(repeated, steps, pieces * rounds);
  }

  // Of a step that cannot be recorded (it is none of decoding): issued anew each time, which is
  // hidden as long as the device takes longer than the host.
  kernels::StatusOr<Timing> MeasureUnrecorded(const std::function<void()>& step) {
    const kernels::StatusOr<double> alone = WarmUp(0, step);
    if (!alone.ok()) return alone.status();
    return Replay(0, step, 1);
  }

 private:
  static constexpr int kWarmUps = 3;

  static double Now() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
  }

  // Seconds of the fastest of a few runs.
  kernels::StatusOr<double> WarmUp(uint64_t key, const std::function<void()>& step) {
    double fastest = INFINITY;
    for (int i = 0; i < kWarmUps; ++i) {
      const double begin = Now();
      if (kernels::Status status = gpu_->Run(key, step); !status.ok()) return status;
      fastest = std::min(fastest, Now() - begin);
    }
    return fastest;
  }

  // Two are begun at any time, so that the device goes from one to the next.
  kernels::StatusOr<Timing> Replay(uint64_t key, const std::function<void()>& step, int pieces) {
    kernels::Status status = gpu_->Begin(key, step);
    if (status.ok()) status = gpu_->Begin(key, step);
    if (status.ok()) status = gpu_->Finish();
    std::vector<double> seconds;
    double total = 0, last = Now();
    while (status.ok() && Wanted(seconds, total)) {
      status = gpu_->Begin(key, step);
      if (status.ok()) status = gpu_->Finish();
      const double now = Now();
      seconds.push_back((now - last) / pieces);
      total += now - std::exchange(last, now);
    }
    // Also after a failure: nothing may be under way.
    gpu_->Synchronize();
    for (int i = 0; i < 2; ++i) {
      const kernels::Status ended = gpu_->Finish();
      if (status.ok()) status = ended;
    }
    if (!status.ok()) return status;
    std::sort(seconds.begin(), seconds.end());
    return Timing{.median = seconds[seconds.size() / 2],
                  .min = seconds.front(),
                  .max = seconds.back(),
                  .runs = static_cast<int>(seconds.size())};
  }

  bool Wanted(const std::vector<double>& seconds, double total) const {
    const auto runs = static_cast<int>(seconds.size());
    return runs < options_.least_runs ||
           (total < options_.least_seconds && runs < options_.most_runs);
  }

  kernels::Backend* const gpu_;
  const TimerOptions options_;
  uint64_t keys_ = 0;
};

}  // namespace qserve::bench
