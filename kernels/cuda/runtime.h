// What the CUDA backend needs of the CUDA runtime, and nothing more: memory, copies, streams,
// events and graphs of one device. runtime_cuda.cc calls CUDA; runtime_emulated.cc runs everything
// on the host, for tests. Calls return error codes (0: success) and never throw; ErrorText says
// what a code means. One thread at a time uses a Runtime, but for Wait(event), which any thread may
// call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/stream.h"
#include "kernels/status.h"

namespace qserve::kernels::cuda {

// A cudaEvent_t and a cudaGraphExec_t, or what the emulator has in their places.
using EventHandle = void*;
using GraphHandle = void*;

struct DeviceProperties {
  std::string name;
  int compute_capability = 0;  // major * 10 + minor: 80, 89, 90, ...
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t shared_bytes_per_block = 0;  // dynamic, with the opt-in
};

enum class CopyKind { kToDevice, kToHost, kOnDevice };

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceProperties& properties() const = 0;

  // Makes the device the calling thread's; before other calls of a thread that may be new to it.
  virtual DeviceError MakeCurrent() = 0;

  // Device memory is undefined at first and aligned to 256 bytes. Pinned host memory likewise.
  virtual DeviceError Allocate(int64_t bytes, void** device) = 0;
  virtual DeviceError Free(void* device) = 0;
  virtual DeviceError AllocatePinned(int64_t bytes, void** host) = 0;
  virtual DeviceError FreePinned(void* host) = 0;
  virtual DeviceError MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) const = 0;

  virtual DeviceError CreateStream(StreamHandle* stream) = 0;
  virtual DeviceError DestroyStream(StreamHandle stream) = 0;
  virtual DeviceError Synchronize(StreamHandle stream) = 0;
  // The host's side must be pinned and untouched until the copy is done.
  virtual DeviceError CopyAsync(void* to, const void* from, int64_t bytes, CopyKind kind,
                                StreamHandle stream) = 0;
  virtual DeviceError FillAsync(void* device, uint8_t byte, int64_t bytes, StreamHandle stream) = 0;

  virtual DeviceError CreateEvent(EventHandle* event) = 0;
  virtual DeviceError DestroyEvent(EventHandle event) = 0;
  virtual DeviceError Record(EventHandle event, StreamHandle stream) = 0;
  virtual DeviceError Wait(EventHandle event) = 0;  // the calling thread, for the last Record
  // Whether the stream has come so far; does not wait.
  virtual DeviceError Query(EventHandle event, bool* reached) = 0;

  // Between the two, what this thread enqueues on the stream is kept instead of run. EndCapture
  // makes it ready to be launched any number of times; on an error there is no graph and the stream
  // works again.
  virtual DeviceError BeginCapture(StreamHandle stream) = 0;
  virtual DeviceError EndCapture(StreamHandle stream, GraphHandle* graph) = 0;
  virtual DeviceError Launch(GraphHandle graph, StreamHandle stream) = 0;
  virtual DeviceError DestroyGraph(GraphHandle graph) = 0;

  virtual bool IsOutOfMemory(DeviceError error) const = 0;
  virtual std::string ErrorText(DeviceError error) const = 0;
};

// The runtime of GPU `ordinal`. Unsupported when there is none, or one that is too old.
StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime(int ordinal);

}  // namespace qserve::kernels::cuda
