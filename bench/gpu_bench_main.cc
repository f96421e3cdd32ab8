// gpu_bench PART...: see gpu_bench.h. Parts: linears, attention, steps; none: all. Exit status 77
// where there is no GPU. tests/gpu/bench.sh calls it, and measures the peers in the same run.
#include <cstdio>
#include <string>

#include "bench/gpu_bench.h"
#include "kernels/device_factory.h"

int main(int argc, char** argv) {
  qserve::bench::GpuBenchOptions options;
  options.parts = {argv + 1, argv + argc};
  for (const std::string& part : options.parts) {
    if (part == "linears" || part == "attention" || part == "steps") continue;
    std::fprintf(stderr, "gpu_bench: the parts are linears, attention and steps, not %s\n",
                 part.c_str());
    return 2;
  }
  auto gpu = qserve::kernels::CreateBackend({.device = "cuda"});
  if (!gpu.ok()) {
    std::fprintf(stderr, "SKIPPED: %s\n", gpu.status().message().c_str());
    return 77;
  }
  const auto status = qserve::bench::RunGpuBench(**gpu, options, [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  });
  if (status.ok()) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", status.message().c_str());
  return 1;
}
