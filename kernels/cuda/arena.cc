#include "kernels/cuda/arena.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/check.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kSmallParts = 4;  // a shared block holds at least so many pieces
constexpr int64_t kMebibyte = int64_t{1} << 20;

int64_t RoundUp(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::string Text(int64_t bytes) {
  if (bytes < 10 * kMebibyte) return std::to_string(bytes) + " bytes";
  return std::to_string(bytes / kMebibyte) + " MiB";
}

}  // namespace

Arena::~Arena() {
  for (const Block& block : blocks_) runtime_->Free(block.base);
}

std::byte* Arena::TakeFrom(std::list<Block>::iterator block, int64_t bytes,
                           std::string_view purpose) {
  for (auto range = block->free.begin(); range != block->free.end(); ++range) {
    const auto [offset, length] = *range;
    if (length < bytes) continue;
    block->free.erase(range);
    if (length > bytes) block->free.emplace(offset + bytes, length - bytes);
    std::byte* const memory = block->base + offset;
    pieces_[memory] = {block, offset, bytes, std::string(purpose)};
    Note(purpose, bytes);
    return memory;
  }
  return nullptr;
}

DeviceError Arena::NewBlock(int64_t bytes) {
  void* base = nullptr;
  const DeviceError error = runtime_->Allocate(bytes, &base);
  if (error != 0) return error;
  blocks_.push_back({static_cast<std::byte*>(base), bytes, {{0, bytes}}});
  return 0;
}

StatusOr<void*> Arena::Allocate(int64_t bytes, std::string_view purpose) {
  QSERVE_CHECK(bytes > 0);
  if (bytes > INT64_MAX - kAlignment) return OutOfMemory(bytes, purpose, 0);
  const int64_t rounded = RoundUp(bytes);
  const bool shared = rounded <= options_.block_bytes / kSmallParts;
  if (shared) {
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (std::byte* const memory = TakeFrom(block, rounded, purpose)) return memory;
    }
  }
  DeviceError error = NewBlock(shared ? options_.block_bytes : rounded);
  // The last of the memory is given out in small blocks.
  if (shared && runtime_->IsOutOfMemory(error)) error = NewBlock(rounded);
  if (error != 0) return OutOfMemory(bytes, purpose, error);
  return TakeFrom(std::prev(blocks_.end()), rounded, purpose);
}

void Arena::Free(void* memory) {
  const auto found = pieces_.find(memory);
  QSERVE_CHECK_MSG(found != pieces_.end(), "memory is freed that this arena did not give");
  const Piece piece = std::move(found->second);
  pieces_.erase(found);
  Note(piece.purpose, -piece.bytes);
  std::map<int64_t, int64_t>& free = piece.block->free;
  auto range = free.emplace(piece.offset, piece.bytes).first;
  if (const auto next = std::next(range);
      next != free.end() && range->first + range->second == next->first) {
    range->second += next->second;
    free.erase(next);
  }
  if (range != free.begin()) {
    const auto previous = std::prev(range);
    if (previous->first + previous->second == range->first) {
      previous->second += range->second;
      free.erase(range);
      range = previous;
    }
  }
  if (range->second == piece.block->bytes) {
    runtime_->Free(piece.block->base);
    blocks_.erase(piece.block);
  }
}

int64_t Arena::Available() const {
  int64_t free = 0, total = 0;
  if (runtime_->MemoryInfo(&free, &total) != 0) return 0;
  return std::max<int64_t>(0, free - options_.headroom_bytes);
}

void Arena::Note(std::string_view purpose, int64_t bytes) {
  auto entry = ledger_.find(purpose);
  if (entry == ledger_.end()) entry = ledger_.emplace(purpose, 0).first;
  entry->second += bytes;
  if (entry->second == 0) ledger_.erase(entry);
}

std::vector<MemoryUse> Arena::Ledger() const {
  std::vector<MemoryUse> uses;
  for (const auto& [purpose, bytes] : ledger_) uses.push_back({purpose, bytes});
  uses.push_back({"headroom", options_.headroom_bytes});
  return uses;
}

Status Arena::OutOfMemory(int64_t bytes, std::string_view purpose, DeviceError error) const {
  if (error != 0 && !runtime_->IsOutOfMemory(error)) {
    return {StatusCode::kDevice,
            "cuda: memory for " + std::string(purpose) + ": " + runtime_->ErrorText(error)};
  }
  int64_t free = 0, total = 0;
  std::string message = "cuda: no memory of " + Text(bytes) + " for " + std::string(purpose);
  if (runtime_->MemoryInfo(&free, &total) == 0) {
    message += "; " + Text(free) + " of the device's " + Text(total) +
               " are free, so that at most " + Text(free) + " would fit";
  }
  message += "; in use:";
  for (const MemoryUse& use : Ledger()) {
    if (use.purpose != "headroom") message += " " + use.purpose + " " + Text(use.bytes) + ",";
  }
  message.pop_back();  // the last comma, or the colon where nothing is in use
  return {StatusCode::kOutOfMemory, std::move(message)};
}

}  // namespace qserve::kernels::cuda
