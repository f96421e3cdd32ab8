// The KV blocks of a replica: who holds how many references to which, and which of those that
// nobody holds still carry a reusable prefix. Used by PrefixCache and the scheduler, on the engine
// thread.
//
// A block is in one of three states: free (in a stack), held (references > 0), or idle (no
// references, but marked as cached; in a list from the least to the most recently released). Free
// and idle blocks are available.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/plan/step_plan.h"

namespace qserve::worker::sched {

class BlockPool {
 public:
  explicit BlockPool(int32_t blocks);

  // A free block with one reference; none when no block is free.
  std::optional<plan::BlockId> TakeFree();
  // The idle block released longest ago, with one reference and no longer marked as cached.
  std::optional<plan::BlockId> TakeOldestIdle();

  void AddReference(plan::BlockId block);  // to a held or an idle block
  // Without references it becomes idle (most recent) if marked as cached, else free.
  void DropReference(plan::BlockId block);
  void MarkCached(plan::BlockId block);  // held blocks only

  int32_t total() const { return static_cast<int32_t>(entries_.size()); }
  int32_t idle() const { return idle_count_; }
  int32_t available() const { return static_cast<int32_t>(free_.size()) + idle_count_; }
  int32_t references(plan::BlockId block) const { return entry(block).references; }
  bool cached(plan::BlockId block) const { return entry(block).cached; }

  // Idle blocks, the oldest first. For tests and CheckInvariants.
  std::vector<plan::BlockId> IdleBlocks() const;
  // Empty, or what is wrong: every block must be in exactly one state.
  std::string FindInconsistency() const;

 private:
  struct Entry {
    int32_t references = 0;
    int32_t previous = -1;  // neighbours in the idle list
    int32_t next = -1;
    bool cached = false;
  };
  Entry& entry(plan::BlockId block) { return entries_[static_cast<size_t>(block.value())]; }
  const Entry& entry(plan::BlockId block) const {
    return entries_[static_cast<size_t>(block.value())];
  }
  void Unlink(int32_t index);

  std::vector<Entry> entries_;
  std::vector<int32_t> free_;
  int32_t idle_oldest_ = -1;
  int32_t idle_newest_ = -1;
  int32_t idle_count_ = 0;
};

}  // namespace qserve::worker::sched
