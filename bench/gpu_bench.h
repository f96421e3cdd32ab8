// What the GPU backend reaches of what its GPU can do: ceilings first, then linears, attention and
// whole steps. Weights and inputs are random; what is read is rotated past the second-level cache.
// Called by gpu_bench_main.cc, and by a test on the emulated GPU. It links kernels/ alone.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "bench/gpu_shapes.h"
#include "bench/gpu_timer.h"
#include "kernels/backend.h"

namespace qserve::bench {

struct GpuBenchOptions {
  std::set<std::string> parts;  // linears, attention, steps; none: all
  std::vector<GpuShape> shapes = {kGpuShapes.begin(), kGpuShapes.end()};
  std::vector<int64_t> linear_rows = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096};
  std::vector<int64_t> attention_batches = {1, 16, 64, 256};
  std::vector<int64_t> attention_contexts = {256, 1024, 4096, 16384};
  int64_t beyond_cache = int64_t{160} << 20;  // more than any GPU's second level holds
  int64_t prompt = 1024;
  int64_t output = 512;
  int64_t prefill_rows = 2048;
  int64_t most_sequences = 256;
  int64_t copy_floats = int64_t{1} << 28;
  int peak_blocks = 2048;
  int peak_rounds = 4096;
  TimerOptions timer;
};

// Prints JSON lines, one a measurement; one that does not fit the device's memory says "absent" and
// why. An error is one of the device, after which nothing can be measured. `gpu` must own a CUDA
// stream.
kernels::Status RunGpuBench(kernels::Backend& gpu, const GpuBenchOptions& options,
                            const std::function<void(const std::string&)>& print);

}  // namespace qserve::bench
