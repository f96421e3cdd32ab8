// Finds KV blocks by the tokens that they and all blocks before them hold, so that a prompt which
// begins like an earlier one is not computed again. Used by the scheduler, on the engine thread.
//
// A block enters when it is full and its step has been committed. Its key is a hash chained over
// all blocks before it and begun with the salt; what decides is the exact comparison of its 64
// tokens, its parent block and, for a first block, the salt: a hash collision is a miss. Whoever
// holds a block holds its ancestors, and releases itself before them; so the block idle for longest
// never has a cached child, and eviction takes leaves first.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "worker/plan/step_plan.h"
#include "worker/sched/block_pool.h"

namespace qserve::worker::sched {

using BlockTokens = std::span<const int32_t, plan::kBlockTokens>;

class PrefixCache {
 public:
  // `pool` must outlive the cache. `hash_mask` is combined with every hash; tests narrow it to
  // force collisions.
  explicit PrefixCache(BlockPool& pool, uint64_t hash_mask = ~uint64_t{0});

  // The hash that a chain under this salt begins with, and the one after another block.
  uint64_t RootHash(uint64_t salt) const;
  uint64_t ChainHash(uint64_t parent_hash, BlockTokens tokens) const;

  // Where a block stands: after which one (none for the first) under which salt.
  struct Place {
    std::optional<plan::BlockId> parent;
    uint64_t salt = 0;
    uint64_t hash = 0;  // ChainHash of this block
  };

  // The cached block with these tokens in that place. Takes no reference.
  std::optional<plan::BlockId> Find(const Place& place, BlockTokens tokens) const;

  // Enters a full, held block. Returns the block that stands for these tokens from now on: `block`,
  // or the one that was there already, with a reference moved to it from `block`. None when another
  // block's hash is in the way; then nothing after it can be entered either.
  std::optional<plan::BlockId> Insert(const Place& place, BlockTokens tokens, plan::BlockId block);

  // A block with one reference: a free one, else the longest idle one, which is forgotten.
  // Precondition: pool.available() > 0.
  plan::BlockId Allocate();

  int64_t entries() const { return static_cast<int64_t>(by_hash_.size()); }
  // Empty, or what is wrong.
  std::string FindInconsistency() const;

 private:
  struct Entry {
    uint64_t hash = 0;
    uint64_t salt = 0;
    int32_t parent = -1;
    int32_t children = 0;  // cached blocks whose parent this is
    bool used = false;
  };
  Entry& entry(plan::BlockId block) { return entries_[static_cast<size_t>(block.value())]; }
  const Entry& entry(plan::BlockId block) const {
    return entries_[static_cast<size_t>(block.value())];
  }
  bool Matches(plan::BlockId block, const Place& place, BlockTokens tokens) const;
  void Forget(plan::BlockId block);

  BlockPool& pool_;
  const uint64_t hash_mask_;
  absl::flat_hash_map<uint64_t, plan::BlockId> by_hash_;
  std::vector<Entry> entries_;   // by block
  std::vector<int32_t> tokens_;  // [blocks, kBlockTokens]
};

}  // namespace qserve::worker::sched
