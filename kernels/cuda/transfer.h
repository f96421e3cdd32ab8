// Copies between ordinary host memory and the device, of any size, by way of pinned memory: weights
// at start-up, and what communicators that go through the host move. Used by CudaBackend, on its
// thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/runtime.h"

namespace qserve::kernels::cuda {

class Transfer {
 public:
  // `runtime` must outlive it. `chunk_bytes`: of each of the two pinned pieces, which are allocated
  // at the first use.
  Transfer(Runtime* runtime, int64_t chunk_bytes) : runtime_(runtime), chunk_bytes_(chunk_bytes) {}
  ~Transfer();
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Behind what is on the stream. The host's memory may be changed on return.
  DeviceError ToDevice(void* device, const void* host, int64_t bytes, StreamHandle stream);
  // Waits until the bytes are there.
  DeviceError ToHost(void* host, const void* device, int64_t bytes, StreamHandle stream);

 private:
  struct Chunk {
    std::byte* memory = nullptr;
    EventHandle free = nullptr;  // recorded behind the copy that read it
  };
  DeviceError Prepare();

  Runtime* const runtime_;
  const int64_t chunk_bytes_;
  Chunk chunks_[2];
  int next_ = 0;
};

}  // namespace qserve::kernels::cuda
