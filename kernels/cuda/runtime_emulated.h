// Runtime over the emulator: device and pinned memory are host memory, streams are
// emulator::Stream, so that everything above runs, late and in order, without a GPU. It notices
// what a GPU punishes at random: copies of memory that is not pinned or not there, allocation while
// a graph is captured, waiting inside a capture, calls of threads for which the device is not the
// current one. For tests; one thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/runtime.h"

namespace qserve::kernels::cuda {

struct EmulatedDevice {
  int64_t memory_bytes = int64_t{1} << 30;
  int compute_capability = 80;
  int multiprocessors = 8;
  uint64_t order_seed = 0;  // of blocks and threads (emulator::LaunchShape)
};

class EmulatedRuntime final : public Runtime {
 public:
  // Codes of its own making; a kernel's launch cannot fail here.
  static constexpr DeviceError kOutOfMemory = 2;
  static constexpr DeviceError kMisuse = 1;

  // Current for the calling thread, as a runtime that CreateCudaRuntime makes.
  explicit EmulatedRuntime(const EmulatedDevice& device);
  ~EmulatedRuntime() override;

  const DeviceProperties& properties() const override { return properties_; }
  DeviceError MakeCurrent() override;
  DeviceError Allocate(int64_t bytes, void** device) override;
  DeviceError Free(void* device) override;
  DeviceError AllocatePinned(int64_t bytes, void** host) override;
  DeviceError FreePinned(void* host) override;
  DeviceError MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) const override;
  DeviceError CreateStream(StreamHandle* stream) override;
  DeviceError DestroyStream(StreamHandle stream) override;
  DeviceError Synchronize(StreamHandle stream) override;
  DeviceError CopyAsync(void* to, const void* from, int64_t bytes, CopyKind kind,
                        StreamHandle stream) override;
  DeviceError FillAsync(void* device, uint8_t byte, int64_t bytes, StreamHandle stream) override;
  DeviceError CreateEvent(EventHandle* event) override;
  DeviceError DestroyEvent(EventHandle event) override;
  DeviceError Record(EventHandle event, StreamHandle stream) override;
  DeviceError Wait(EventHandle event) override;
  DeviceError Query(EventHandle event, bool* reached) override;
  DeviceError BeginCapture(StreamHandle stream) override;
  DeviceError EndCapture(StreamHandle stream, GraphHandle* graph) override;
  DeviceError Launch(GraphHandle graph, StreamHandle stream) override;
  DeviceError DestroyGraph(GraphHandle graph) override;
  bool IsOutOfMemory(DeviceError error) const override { return error == kOutOfMemory; }
  std::string ErrorText(DeviceError error) const override;

  // For tests. Every later wait gives `error`, as after a kernel that failed.
  void FailWaits(DeviceError error) { wait_error_ = error; }
  // No query finds an event reached, as while a collective waits for a lost peer.
  void StandStill(bool still) { still_ = still; }
  int64_t waits() const { return waits_; }  // for events
  const std::vector<std::string>& misuses() const { return misuses_; }
  int64_t allocations() const { return allocations_; }  // of both kinds of memory, so far
  int64_t bytes_to_device() const { return bytes_to_device_; }
  int64_t allocated_bytes() const { return allocated_bytes_; }
  int64_t copies_to_device() const { return copies_to_device_; }
  int64_t graph_launches() const { return graph_launches_; }
  int64_t graphs() const { return graphs_; }  // that exist

 private:
  using Ranges = std::map<const std::byte*, int64_t>;  // first byte -> bytes
  DeviceError Misuse(const std::string& what) const;
  // A misuse unless the device is the calling thread's.
  DeviceError CheckCurrent(const char* call) const;
  DeviceError NewMemory(int64_t bytes, Ranges* ranges, void** memory);
  DeviceError DropMemory(void* memory, Ranges* ranges, const char* what);
  static bool Contains(const Ranges& ranges, const void* data, int64_t bytes);
  bool Capturing() const { return capturing_ != nullptr; }

  const EmulatedDevice device_;
  DeviceProperties properties_;
  Ranges device_memory_;
  Ranges pinned_memory_;
  int64_t allocated_bytes_ = 0;
  emulator::Stream* capturing_ = nullptr;
  DeviceError wait_error_ = 0;
  bool still_ = false;
  int64_t waits_ = 0;
  mutable std::vector<std::string> misuses_;
  const uint64_t id_;  // among all devices of the process
  int64_t allocations_ = 0;
  int64_t bytes_to_device_ = 0;
  int64_t copies_to_device_ = 0;
  int64_t graph_launches_ = 0;
  int64_t graphs_ = 0;
};

}  // namespace qserve::kernels::cuda
