// What a sum between the ranks of one host costs, over shared memory and over TCP: ranks are
// threads with a core each, as the processes of a group are. Prints JSON lines, microseconds a
// call.
//
//   communicator_bench [RANKS]     default 2
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/statistics.h"
#include "common/check.h"
#include "common/clock.h"
#include "kernels/device_factory.h"
#include "worker/comm/gloo_communicator.h"
#include "worker/comm/memory_store.h"
#include "worker/comm/shared_memory_communicator.h"

namespace qserve::bench {
namespace {

using worker::comm::Communicator;
using worker::comm::MemoryStore;

using Connect = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
    int rank, MemoryStore& store, kernels::Backend& backend)>;

void Measure(const char* transport, int ranks, const Connect& connect) {
  constexpr int kWarmUp = 200, kCalls = 3000;
  MemoryStore store;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      auto backend = kernels::CreateBackend({.device = "cpu", .threads = 1});
      QSERVE_CHECK(backend.ok());
      const auto communicator = connect(rank, store, **backend);
      QSERVE_CHECK_MSG(communicator.ok(), communicator.status().ToString());
      for (const int64_t bytes : {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20}) {
        std::vector<float> values(static_cast<size_t>(bytes / 4), 1.0f);
        const auto count = static_cast<int64_t>(values.size());
        std::vector<double> microseconds;
        for (int call = 0; call < kWarmUp + kCalls / (bytes >= 1 << 20 ? 10 : 1); ++call) {
          const TimePoint begin = SteadyClock().Now();
          (*communicator)->AllReduceSumInPlace({values.data(), 1, count, count});
          if (call >= kWarmUp) microseconds.push_back(1e6 * ToSeconds(SteadyClock().Now() - begin));
          values[0] = 1.0f;
        }
        if (rank != 0) continue;
        const Summary summary = Summarize(microseconds);
        std::printf(
            "{\"transport\": \"%s\", \"ranks\": %d, \"bytes\": %lld, \"p50_us\": %.2f, "
            "\"p90_us\": %.2f, \"p99_us\": %.2f}\n",
            transport, ranks, static_cast<long long>(bytes), summary.p50, summary.p90, summary.p99);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) {
  namespace bench = qserve::bench;
  namespace kernels = qserve::kernels;
  namespace worker = qserve::worker;
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 2;
  if (ranks < 2 || ranks > 64) {
    std::fprintf(stderr, "usage: communicator_bench [RANKS]   (2 to 64)\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  bench::Measure("shared memory", ranks, [&](int rank, auto& store, kernels::Backend& backend) {
    return worker::comm::CreateSharedMemoryCommunicator({.rank = rank, .size = ranks}, &store,
                                                        &backend);
  });
  bench::Measure("gloo", ranks, [&](int rank, auto& store, kernels::Backend& backend) {
    return worker::comm::CreateGlooCommunicator(
        {.rank = rank, .size = ranks, .bind_host = "127.0.0.1"}, &store, &backend);
  });
  return 0;
}
