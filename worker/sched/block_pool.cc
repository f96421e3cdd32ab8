// The free stack and the idle list of BlockPool. Engine thread only.
#include "worker/sched/block_pool.h"

#include <fmt/format.h>

#include "common/check.h"

namespace qserve::worker::sched {

BlockPool::BlockPool(int32_t blocks) {
  QSERVE_CHECK(blocks >= 0);
  entries_.resize(static_cast<size_t>(blocks));
  free_.reserve(entries_.size());
  for (int32_t i = blocks - 1; i >= 0; --i) free_.push_back(i);  // block 0 is taken first
}

std::optional<plan::BlockId> BlockPool::TakeFree() {
  if (free_.empty()) return std::nullopt;
  const int32_t index = free_.back();
  free_.pop_back();
  entries_[static_cast<size_t>(index)].references = 1;
  return plan::BlockId(index);
}

std::optional<plan::BlockId> BlockPool::TakeOldestIdle() {
  if (idle_oldest_ < 0) return std::nullopt;
  const int32_t index = idle_oldest_;
  Unlink(index);
  Entry& taken = entries_[static_cast<size_t>(index)];
  taken.references = 1;
  taken.cached = false;
  return plan::BlockId(index);
}

void BlockPool::AddReference(plan::BlockId block) {
  Entry& e = entry(block);
  if (e.references == 0) {
    QSERVE_CHECK(e.cached);
    Unlink(block.value());
  }
  ++e.references;
}

void BlockPool::DropReference(plan::BlockId block) {
  Entry& e = entry(block);
  QSERVE_CHECK(e.references > 0);
  if (--e.references > 0) return;
  const int32_t index = block.value();
  if (!e.cached) {
    free_.push_back(index);
    return;
  }
  e.previous = idle_newest_;
  e.next = -1;
  if (idle_newest_ >= 0) {
    entries_[static_cast<size_t>(idle_newest_)].next = index;
  } else {
    idle_oldest_ = index;
  }
  idle_newest_ = index;
  ++idle_count_;
}

void BlockPool::MarkCached(plan::BlockId block) {
  QSERVE_CHECK(entry(block).references > 0);
  entry(block).cached = true;
}

void BlockPool::Unlink(int32_t index) {
  Entry& e = entries_[static_cast<size_t>(index)];
  if (e.previous >= 0) {
    entries_[static_cast<size_t>(e.previous)].next = e.next;
  } else {
    idle_oldest_ = e.next;
  }
  if (e.next >= 0) {
    entries_[static_cast<size_t>(e.next)].previous = e.previous;
  } else {
    idle_newest_ = e.previous;
  }
  e.previous = -1;
  e.next = -1;
  --idle_count_;
}

std::vector<plan::BlockId> BlockPool::IdleBlocks() const {
  std::vector<plan::BlockId> blocks;
  for (int32_t i = idle_oldest_; i >= 0; i = entries_[static_cast<size_t>(i)].next) {
    blocks.push_back(plan::BlockId(i));
  }
  return blocks;
}

std::string BlockPool::FindInconsistency() const {
  std::vector<int> places(entries_.size(), 0);
  for (size_t i = 0; i < entries_.size(); ++i) places[i] = entries_[i].references > 0 ? 1 : 0;
  for (const int32_t index : free_) {
    ++places[static_cast<size_t>(index)];
    if (entries_[static_cast<size_t>(index)].cached) {
      return fmt::format("free block {} is marked as cached", index);
    }
  }
  const std::vector<plan::BlockId> idle_blocks = IdleBlocks();
  if (static_cast<int32_t>(idle_blocks.size()) != idle_count_) return "idle count is wrong";
  for (const plan::BlockId block : idle_blocks) {
    ++places[static_cast<size_t>(block.value())];
    if (!cached(block)) return fmt::format("idle block {} is not cached", block.value());
  }
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] != 1) return fmt::format("block {} is in {} places", i, places[i]);
  }
  return {};
}

}  // namespace qserve::worker::sched
