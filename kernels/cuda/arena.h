// Device memory of a CudaBackend: large blocks of the runtime's, cut into pieces of 256 bytes, with
// a ledger of what they are for. Nothing is allocated while a step runs or a graph is captured. The
// backend's thread uses it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"

namespace qserve::kernels::cuda {

class Arena {
 public:
  struct Options {
    // Pieces of up to a quarter of this share blocks of this size; larger ones have blocks of their
    // own. 0: every piece has its own, so that an address sanitizer sees its ends (tests).
    int64_t block_bytes = int64_t{256} << 20;
    // Left to whoever allocates besides (graphs, communicators, the driver).
    int64_t headroom_bytes = 0;
  };

  // `runtime` must outlive the arena.
  Arena(Runtime* runtime, const Options& options) : runtime_(runtime), options_(options) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `bytes` > 0, undefined contents, aligned to 256 bytes. OutOfMemory says what was asked, what is
  // used for what, and what would have been possible.
  StatusOr<void*> Allocate(int64_t bytes, std::string_view purpose);
  // What is not in use any more; the caller has waited for the device.
  void Free(void* memory);

  // Free memory of the device beyond the headroom.
  int64_t Available() const;

  // Notes memory that others took (graphs), or takes it back.
  void Note(std::string_view purpose, int64_t bytes);

  // What is held, by purpose, in the order of the names, then the headroom.
  std::vector<MemoryUse> Ledger() const;

 private:
  struct Block {
    std::byte* base = nullptr;
    int64_t bytes = 0;
    std::map<int64_t, int64_t> free;  // offset -> bytes; neighbours are merged
  };
  struct Piece {
    std::list<Block>::iterator block;
    int64_t offset = 0;
    int64_t bytes = 0;
    std::string purpose;
  };

  // The first free range that holds `bytes` in a shared block; null if there is none.
  std::byte* TakeFrom(std::list<Block>::iterator block, int64_t bytes, std::string_view purpose);
  DeviceError NewBlock(int64_t bytes);
  Status OutOfMemory(int64_t bytes, std::string_view purpose, DeviceError error) const;

  Runtime* const runtime_;
  const Options options_;
  std::list<Block> blocks_;
  std::map<const void*, Piece> pieces_;
  std::map<std::string, int64_t, std::less<>> ledger_;
};

}  // namespace qserve::kernels::cuda
