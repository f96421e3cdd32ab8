#include "kernels/cuda/transfer.h"

#include <algorithm>
#include <cstring>

namespace qserve::kernels::cuda {

Transfer::~Transfer() {
  for (const Chunk& chunk : chunks_) {
    if (chunk.free != nullptr) {
      runtime_->Wait(chunk.free);
      runtime_->DestroyEvent(chunk.free);
    }
    if (chunk.memory != nullptr) runtime_->FreePinned(chunk.memory);
  }
}

DeviceError Transfer::Prepare() {
  for (Chunk& chunk : chunks_) {
    if (chunk.memory == nullptr) {
      void* memory = nullptr;
      if (const DeviceError error = runtime_->AllocatePinned(chunk_bytes_, &memory); error != 0) {
        return error;
      }
      chunk.memory = static_cast<std::byte*>(memory);
    }
    if (chunk.free == nullptr) {
      if (const DeviceError error = runtime_->CreateEvent(&chunk.free); error != 0) return error;
    }
  }
  return 0;
}

DeviceError Transfer::ToDevice(void* device, const void* host, int64_t bytes, StreamHandle stream) {
  DeviceError error = Prepare();
  for (int64_t done = 0; done < bytes && error == 0; done += chunk_bytes_) {
    Chunk& chunk = chunks_[next_];
    next_ = 1 - next_;
    const int64_t count = std::min(chunk_bytes_, bytes - done);
    error = runtime_->Wait(chunk.free);
    if (error != 0) break;
    std::memcpy(chunk.memory, static_cast<const std::byte*>(host) + done,
                static_cast<size_t>(count));
    error = runtime_->CopyAsync(static_cast<std::byte*>(device) + done, chunk.memory, count,
                                CopyKind::kToDevice, stream);
    if (error == 0) error = runtime_->Record(chunk.free, stream);
  }
  return error;
}

DeviceError Transfer::ToHost(void* host, const void* device, int64_t bytes, StreamHandle stream) {
  DeviceError error = Prepare();
  for (int64_t done = 0; done < bytes && error == 0; done += chunk_bytes_) {
    Chunk& chunk = chunks_[next_];
    next_ = 1 - next_;
    const int64_t count = std::min(chunk_bytes_, bytes - done);
    error = runtime_->Wait(chunk.free);
    if (error != 0) break;
    error = runtime_->CopyAsync(chunk.memory, static_cast<const std::byte*>(device) + done, count,
                                CopyKind::kToHost, stream);
    if (error == 0) error = runtime_->Record(chunk.free, stream);
    if (error == 0) error = runtime_->Wait(chunk.free);
    if (error != 0) break;
    std::memcpy(static_cast<std::byte*>(host) + done, chunk.memory, static_cast<size_t>(count));
  }
  return error;
}

}  // namespace qserve::kernels::cuda
