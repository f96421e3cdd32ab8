#include "kernels/cuda/staging.h"

#include <algorithm>
#include <string>

#include "common/check.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kResultBlockBytes = int64_t{256} << 10;
// What lies between two pieces is copied along if it is less: a copy of its own takes the host and
// the device a few microseconds, in which a bus moves as much.
constexpr int64_t kGapWorthACopy = int64_t{32} << 10;

int64_t RoundUp(int64_t bytes) {
  return (bytes + InputStaging::kAlignment - 1) / InputStaging::kAlignment *
         InputStaging::kAlignment;
}

Status NoPinnedMemory(const Runtime& runtime, DeviceError error, int64_t bytes) {
  return {runtime.IsOutOfMemory(error) ? StatusCode::kOutOfMemory : StatusCode::kDevice,
          "cuda: no pinned host memory of " + std::to_string(bytes) +
              " bytes: " + runtime.ErrorText(error)};
}

}  // namespace

InputStaging::~InputStaging() {
  for (const Block& block : blocks_) {
    for (std::byte* host : block.host) runtime_->FreePinned(host);
    arena_->Free(block.device);
  }
}

void InputStaging::BeginStep(int slot) {
  slot_ = slot;
  block_ = Largest();
  offset_ = 0;
  taken_.clear();
}

size_t InputStaging::Largest() const {
  const auto largest =
      std::max_element(blocks_.begin(), blocks_.end(),
                       [](const Block& a, const Block& b) { return a.bytes < b.bytes; });
  return static_cast<size_t>(largest - blocks_.begin());
}

Status InputStaging::Reserve(int64_t bytes) { return BlockOf(bytes).status(); }

bool InputStaging::Has(int64_t bytes) const {
  return block_ < blocks_.size() && offset_ + RoundUp(bytes) <= blocks_[block_].bytes;
}

Status InputStaging::AddBlock(int64_t bytes) {
  Block block;
  block.bytes = std::max(RoundUp(bytes), block_bytes_);
  StatusOr<void*> device = arena_->Allocate(block.bytes, "step inputs");
  if (!device.ok()) return device.status();
  block.device = static_cast<std::byte*>(*device);
  for (std::byte*& host : block.host) {
    void* memory = nullptr;
    const DeviceError error = runtime_->AllocatePinned(block.bytes, &memory);
    host = static_cast<std::byte*>(memory);
    if (error == 0) continue;
    for (std::byte* made : block.host) {
      if (made != nullptr) runtime_->FreePinned(made);
    }
    arena_->Free(block.device);
    return NoPinnedMemory(*runtime_, error, block.bytes);
  }
  blocks_.push_back(block);
  return {};
}

void InputStaging::MarkTaken(size_t block, int64_t begin, int64_t end) {
  if (!taken_.empty() && taken_.back().block == block && begin >= taken_.back().end &&
      begin - taken_.back().end < kGapWorthACopy) {
    taken_.back().end = end;
  } else {
    taken_.push_back({block, begin, end});
  }
}

StatusOr<StagedBytes> InputStaging::Take(int64_t bytes) {
  const int64_t rounded = RoundUp(std::max<int64_t>(bytes, 1));
  while (block_ < blocks_.size() && offset_ + rounded > blocks_[block_].bytes) {
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks_.size()) {
    if (Status status = AddBlock(rounded); !status.ok()) return status;
  }
  const StagedBytes piece = At(block_, offset_);
  MarkTaken(block_, offset_, offset_ + rounded);
  offset_ += rounded;
  return piece;
}

void InputStaging::TrimLast(StagedBytes piece, int64_t bytes) {
  const int64_t begin = piece.host - blocks_[block_].host[slot_];
  QSERVE_CHECK(!taken_.empty() && taken_.back().block == block_ && begin >= 0 &&
               begin + RoundUp(bytes) <= offset_);
  offset_ = begin + RoundUp(bytes);
  taken_.back().end = offset_;
}

StatusOr<size_t> InputStaging::BlockOf(int64_t bytes) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].bytes >= bytes) return i;
  }
  if (Status status = AddBlock(bytes); !status.ok()) return status;
  return blocks_.size() - 1;
}

StagedBytes InputStaging::At(size_t block, int64_t offset) const {
  const Block& in = blocks_[block];
  return {in.host[slot_] + offset, in.device + offset};
}

void InputStaging::TakeAt(size_t block, int64_t begin, int64_t end) {
  QSERVE_CHECK(begin <= end && end <= blocks_[block].bytes);
  block_ = block;
  offset_ = std::min(RoundUp(end), blocks_[block].bytes);
  if (offset_ > begin) MarkTaken(block, begin, offset_);
}

DeviceError InputStaging::Flush(StreamHandle stream) {
  for (const Range& range : taken_) {
    const StagedBytes from = At(range.block, range.begin);
    const DeviceError error = runtime_->CopyAsync(from.device, from.host, range.end - range.begin,
                                                  CopyKind::kToDevice, stream);
    if (error != 0) return error;
  }
  taken_.clear();
  return 0;
}

ResultStaging::~ResultStaging() {
  for (const std::vector<Block>& blocks : blocks_) {
    for (const Block& block : blocks) runtime_->FreePinned(block.host);
  }
}

void ResultStaging::BeginStep(int slot) {
  slot_ = slot;
  block_ = 0;
  offset_ = 0;
}

Status ResultStaging::AddBlock(int slot, int64_t bytes) {
  const int64_t size = std::max(bytes, kResultBlockBytes);
  void* memory = nullptr;
  if (const DeviceError error = runtime_->AllocatePinned(size, &memory); error != 0) {
    return NoPinnedMemory(*runtime_, error, size);
  }
  blocks_[slot].push_back({static_cast<std::byte*>(memory), size});
  return {};
}

Status ResultStaging::Reserve(int64_t bytes) {
  for (int slot = 0; slot < kStepSlots; ++slot) {
    const std::vector<Block>& blocks = blocks_[slot];
    if (std::any_of(blocks.begin(), blocks.end(),
                    [bytes](const Block& block) { return block.bytes >= bytes; })) {
      continue;
    }
    if (Status status = AddBlock(slot, RoundUp(bytes)); !status.ok()) return status;
  }
  return {};
}

StatusOr<std::byte*> ResultStaging::Take(int64_t bytes) {
  const int64_t rounded = RoundUp(std::max<int64_t>(bytes, 1));
  std::vector<Block>& blocks = blocks_[slot_];
  while (block_ < blocks.size() && offset_ + rounded > blocks[block_].bytes) {
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks.size()) {
    if (Status status = AddBlock(slot_, rounded); !status.ok()) return status;
  }
  std::byte* const piece = blocks[block_].host + offset_;
  offset_ += rounded;
  return piece;
}

}  // namespace qserve::kernels::cuda
