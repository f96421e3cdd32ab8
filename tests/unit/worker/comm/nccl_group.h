// Emulated GPUs connected by the fake NCCL, each run by a thread of its own: the group that the
// tests of the communicator work on.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tests/unit/worker/comm/fake_nccl.h"
#include "tests/unit/worker/comm/host_memory_backend.h"
#include "worker/comm/memory_store.h"
#include "worker/comm/nccl_communicator.h"

namespace qserve::worker::comm {

// A rank's stream, as the backend would share it.
class TestStream final : public kernels::cuda::CudaStreamOwner {
 public:
  explicit TestStream(uint64_t order_seed) : stream_(order_seed) {}
  kernels::cuda::StreamHandle stream() override { return &stream_; }
  bool Issuing() const override { return issuing; }
  bool Recording() const override { return stream_.recording(); }
  void Fail(kernels::Status status) override {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  void DropGraphs() override {
    stream_.Synchronize();
    graphs_dropped = true;
  }
  // As the end of Backend::Run: waits for the device and clears the failure.
  kernels::Status Finish() {
    stream_.Synchronize();
    const std::lock_guard lock(mutex_);
    return std::exchange(failure_, kernels::Status());
  }
  kernels::cuda::emulator::Stream& emulated() { return stream_; }

  bool issuing = true;
  std::atomic<bool> graphs_dropped{false};

 private:
  kernels::cuda::emulator::Stream stream_;
  std::mutex mutex_;
  kernels::Status failure_;
};

struct Gpu {
  explicit Gpu(uint64_t seed) : stream(seed) {}
  HostMemoryBackend backend;
  TestStream stream;
  FakeNcclProbe probe;
  std::unique_ptr<Communicator> communicator;
};

class Gpus {
 public:
  explicit Gpus(NcclOptions options) : options_(std::move(options)) {
    for (int r = 0; r < options_.size; ++r) {
      gpus_.push_back(std::make_unique<Gpu>(static_cast<uint64_t>(r)));
    }
    RunAll([&](int r) {
      auto made = Connect(r);
      ASSERT_TRUE(made.ok()) << made.status();
      gpu(r).communicator = *std::move(made);
    });
  }
  // Good-byes wait for each other's streams.
  ~Gpus() {
    RunAll([&](int r) { gpu(r).communicator.reset(); });
  }
  Gpu& gpu(int r) { return *gpus_[static_cast<size_t>(r)]; }
  Communicator& operator[](int r) { return *gpu(r).communicator; }
  int size() const { return options_.size; }
  void RunAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) threads.emplace_back(body, r);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  absl::StatusOr<std::unique_ptr<Communicator>> Connect(int r) {
    NcclOptions options = options_;
    options.rank = r;
    return ConnectNccl(options, &store_, &gpu(r).backend, &gpu(r).stream,
                       std::make_unique<FakeNccl>(&wires_, &gpu(r).probe));
  }

  NcclOptions options_;
  MemoryStore store_;
  FakeNcclWires wires_;
  std::vector<std::unique_ptr<Gpu>> gpus_;
};

inline constexpr int64_t kAlways = int64_t{1} << 40;

inline NcclOptions Options(int size, int64_t one_shot_bytes = 1 << 11) {
  NcclOptions options;
  options.size = size;
  options.generation = 7;
  options.one_shot_bytes = one_shot_bytes;
  options.workspace_bytes = 1 << 15;
  options.watch_interval = std::chrono::milliseconds(1);
  return options;
}

}  // namespace qserve::worker::comm
