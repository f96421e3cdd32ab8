// Scratch memory of a CPU backend: grows to what was asked for most and stays, so that a steady
// state allocates nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

namespace qserve::kernels::cpu {

class Workspace {
 public:
  explicit Workspace(int threads) : per_thread_(static_cast<size_t>(threads)) {}

  // At least `bytes` of memory aligned to 64 bytes, contents undefined; valid until the next call
  // for the same block. Shared() is called outside ParallelFor only; PerThread(t) by thread t or
  // outside.
  void* Shared(size_t bytes) { return shared_.Reserve(bytes); }
  void* PerThread(int thread, size_t bytes) {
    return per_thread_[static_cast<size_t>(thread)].Reserve(bytes);
  }

 private:
  struct Release {
    void operator()(void* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<void, Release> data;
    size_t size = 0;
    void* Reserve(size_t bytes) {
      if (bytes > size) {
        size = (bytes + 63) / 64 * 64;
        data.reset();
        data.reset(std::aligned_alloc(64, size));
      }
      return data.get();
    }
  };
  Block shared_;
  std::vector<Block> per_thread_;
};

}  // namespace qserve::kernels::cpu
