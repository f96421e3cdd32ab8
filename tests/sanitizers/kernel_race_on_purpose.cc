// Shows that the thread sanitizer finds races of kernels on the emulated GPU
// (kernels/cuda/emulator/race_check.h). One of these orders is left out and must be missed:
//
//   kernel_race_on_purpose barrier   before a thread reads what another of its block wrote
//   kernel_race_on_purpose reuse     before a thread writes what another of its block still reads
//   kernel_race_on_purpose warp      between lanes that exchange through memory
//   kernel_race_on_purpose copy      between a copy's arrival and another thread's reading
//   kernel_race_on_purpose fence     between blocks of which the last adds up
//   kernel_race_on_purpose none      nothing left out: must not be reported
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

#include "kernels/cuda/device/kernel.h"

namespace qserve::kernels::cuda {
namespace {

enum class Missing { kNone, kBarrier, kReuse, kWarp, kCopy, kFence };

// Every block sums 64 numbers in shared memory; the last block to arrive adds the sums.
struct Sum {
  struct Params {
    Missing missing = Missing::kNone;
    const int32_t* in = nullptr;
    int32_t* sums = nullptr;  // of the blocks
    uint32_t* arrivals = nullptr;
    int32_t* total = nullptr;
  };
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 3 * kThreads * 4;

  static void Run(const Params& p) {
    auto* copied = reinterpret_cast<int32_t*>(SharedMemory());
    int32_t* pairs = copied + kThreads;
    int32_t* halves = pairs + kThreads;
    const int thread = ThreadId();
    CopyAsync4(copied + thread, p.in + BlockX() * kThreads + thread);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    if (p.missing != Missing::kCopy) SyncThreads();
    pairs[thread] = copied[thread ^ 1];
    if (p.missing != Missing::kWarp) SyncWarp();
    halves[thread] = pairs[thread ^ 2];
    if (p.missing != Missing::kBarrier) SyncThreads();
    int32_t sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += halves[i];
    if (p.missing != Missing::kReuse) SyncThreads();
    halves[thread] = 0;
    if (thread > 0) return;
    p.sums[BlockX()] = sum;
    if (p.missing != Missing::kFence) ThreadFence();
    const bool last = AtomicAdd(p.arrivals, 1u) + 1 == static_cast<uint32_t>(GridX());
    ThreadFence();
    if (!last) return;
    *p.total = 0;
    for (int i = 0; i < GridX(); ++i) *p.total += p.sums[i];
  }
};

bool Run(Missing missing) {
  constexpr int kBlocks = 5;
  const std::vector<int32_t> in(kBlocks * Sum::kThreads, 3);
  std::vector<int32_t> sums(kBlocks);
  uint32_t arrivals = 0;
  int32_t total = 0;
  emulator::Stream stream(/*order_seed=*/1);
  Launch<Sum>(&stream, {.x = kBlocks}, Sum::kSharedBytes,
              {missing, in.data(), sums.data(), &arrivals, &total});
  stream.Synchronize();
  return total == 3 * kBlocks * Sum::kThreads;
}

}  // namespace
}  // namespace qserve::kernels::cuda

int main(int argc, char** argv) {
  using qserve::kernels::cuda::Missing;
  const std::string_view names[] = {"none", "barrier", "reuse", "warp", "copy", "fence"};
  for (int i = 0; argc == 2 && i < 6; ++i) {
    if (names[i] != argv[1]) continue;
    const bool right = qserve::kernels::cuda::Run(static_cast<Missing>(i));
    std::printf("%s: the sum is %s\n", argv[1], right ? "right" : "wrong");
    return 0;
  }
  return 2;
}
