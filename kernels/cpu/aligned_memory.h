// Zeroed host memory for weights and tensors: aligned to 64 bytes, and from 2 MiB on to huge pages,
// which it asks the kernel for. Owned by whoever holds the object. Pages are placed near the thread
// that first touches them.
#pragma once

#include <cstdint>
#include <utility>

namespace qserve::kernels::cpu {

class AlignedMemory {
 public:
  AlignedMemory() = default;
  // Empty (data() == nullptr) if there is not as much, or if bytes <= 0.
  static AlignedMemory Allocate(int64_t bytes);
  AlignedMemory(AlignedMemory&& other) noexcept { Swap(other); }
  AlignedMemory& operator=(AlignedMemory&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~AlignedMemory();

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }
  // Gives the memory away; it is freed by Release(data, bytes).
  void* Detach() {
    bytes_ = 0;
    return std::exchange(data_, nullptr);
  }
  static void Release(void* data, int64_t bytes);

 private:
  void Swap(AlignedMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace qserve::kernels::cpu
