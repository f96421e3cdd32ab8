// Host memory that a step's inputs pass through on their way to the device, and its results on
// their way back. Two slots, one for each step that may be begun and not finished; the device's
// side is shared, since steps run in order. Used by StepRunner alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/runtime.h"

namespace qserve::kernels::cuda {

inline constexpr int kStepSlots = 2;

// A piece of memory on both sides.
struct StagedBytes {
  std::byte* host = nullptr;
  std::byte* device = nullptr;
};

// Inputs. Pieces are taken one behind the other, filled, and copied together.
class InputStaging {
 public:
  static constexpr int64_t kAlignment = 64;

  // Both must outlive it. `block_bytes`: of the first block; others are added when a step needs
  // them, never while a graph is captured. Once steps as large as any have run, none are.
  InputStaging(Runtime* runtime, Arena* arena, int64_t block_bytes)
      : runtime_(runtime), arena_(arena), block_bytes_(block_bytes) {}
  ~InputStaging();
  InputStaging(const InputStaging&) = delete;
  InputStaging& operator=(const InputStaging&) = delete;

  // Forgets the pieces of the step that used `slot` before, which must be finished.
  void BeginStep(int slot);

  // Sees to a block of at least `bytes`; steps begun from now on take their pieces from the
  // largest.
  Status Reserve(int64_t bytes);

  // A piece of `bytes` of the current step.
  StatusOr<StagedBytes> Take(int64_t bytes);
  // Whether Take has that much without another block.
  bool Has(int64_t bytes) const;

  // Gives back what the last piece has beyond `bytes`.
  void TrimLast(StagedBytes piece, int64_t bytes);

  // A block that holds `bytes`, for layouts that are fixed for longer than a step: its index.
  StatusOr<size_t> BlockOf(int64_t bytes);
  // The piece at `offset` of that block.
  StagedBytes At(size_t block, int64_t offset) const;
  // Declares the bytes [begin, end) of the block taken, behind what was declared before; what
  // follows `end` is given by Take.
  void TakeAt(size_t block, int64_t begin, int64_t end);

  // Copies what was taken since the last call: one copy where it lies in one block without a large
  // gap.
  DeviceError Flush(StreamHandle stream);

 private:
  struct Block {
    std::byte* device = nullptr;
    std::byte* host[kStepSlots] = {};
    int64_t bytes = 0;
  };
  struct Range {
    size_t block = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };
  Status AddBlock(int64_t bytes);
  size_t Largest() const;
  void MarkTaken(size_t block, int64_t begin, int64_t end);

  Runtime* const runtime_;
  Arena* const arena_;
  const int64_t block_bytes_;
  std::vector<Block> blocks_;
  std::vector<Range> taken_;  // not copied yet
  int slot_ = 0;
  size_t block_ = 0;  // where the next piece is looked for
  int64_t offset_ = 0;
};

// Results: pinned memory of the step's slot.
class ResultStaging {
 public:
  explicit ResultStaging(Runtime* runtime) : runtime_(runtime) {}
  ~ResultStaging();
  ResultStaging(const ResultStaging&) = delete;
  ResultStaging& operator=(const ResultStaging&) = delete;

  void BeginStep(int slot);
  StatusOr<std::byte*> Take(int64_t bytes);
  // Sees to that much for each slot, so that Take does not allocate.
  Status Reserve(int64_t bytes);

 private:
  struct Block {
    std::byte* host = nullptr;
    int64_t bytes = 0;
  };
  Status AddBlock(int slot, int64_t bytes);
  Runtime* const runtime_;
  std::vector<Block> blocks_[kStepSlots];
  int slot_ = 0;
  size_t block_ = 0;
  int64_t offset_ = 0;
};

}  // namespace qserve::kernels::cuda
