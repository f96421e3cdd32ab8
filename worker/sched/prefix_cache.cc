// Chained hashes in front of exact comparisons. Engine thread only.
#include "worker/sched/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/check.h"
#include "common/hashing.h"

namespace qserve::worker::sched {

PrefixCache::PrefixCache(BlockPool& pool, uint64_t hash_mask)
    : pool_(pool),
      hash_mask_(hash_mask),
      entries_(static_cast<size_t>(pool.total())),
      tokens_(entries_.size() * plan::kBlockTokens) {}

uint64_t PrefixCache::RootHash(uint64_t salt) const {
  return HashSpan(std::span<const uint64_t>(&salt, 1)) & hash_mask_;
}

uint64_t PrefixCache::ChainHash(uint64_t parent_hash, BlockTokens tokens) const {
  return HashSpan(std::span<const int32_t>(tokens), parent_hash) & hash_mask_;
}

bool PrefixCache::Matches(plan::BlockId block, const Place& place, BlockTokens tokens) const {
  const Entry& e = entry(block);
  const int32_t parent = place.parent ? place.parent->value() : -1;
  if (e.parent != parent || e.salt != place.salt) return false;
  const size_t first = static_cast<size_t>(block.value()) * plan::kBlockTokens;
  return std::equal(tokens.begin(), tokens.end(),
                    tokens_.begin() + static_cast<std::ptrdiff_t>(first));
}

std::optional<plan::BlockId> PrefixCache::Find(const Place& place, BlockTokens tokens) const {
  const auto found = by_hash_.find(place.hash);
  if (found == by_hash_.end() || !Matches(found->second, place, tokens)) return std::nullopt;
  return found->second;
}

std::optional<plan::BlockId> PrefixCache::Insert(const Place& place, BlockTokens tokens,
                                                 plan::BlockId block) {
  const auto [position, inserted] = by_hash_.try_emplace(place.hash, block);
  if (!inserted) {
    const plan::BlockId present = position->second;
    if (!Matches(present, place, tokens)) return std::nullopt;
    pool_.AddReference(present);
    pool_.DropReference(block);
    return present;
  }
  QSERVE_CHECK(!entry(block).used);
  entry(block) = Entry{.hash = place.hash,
                       .salt = place.salt,
                       .parent = place.parent ? place.parent->value() : -1,
                       .children = 0,
                       .used = true};
  if (place.parent) ++entry(*place.parent).children;
  const size_t first = static_cast<size_t>(block.value()) * plan::kBlockTokens;
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(first));
  pool_.MarkCached(block);
  return block;
}

plan::BlockId PrefixCache::Allocate() {
  if (const auto block = pool_.TakeFree()) return *block;
  const auto block = pool_.TakeOldestIdle();
  QSERVE_CHECK_MSG(block.has_value(), "no block is available");
  Forget(*block);
  return *block;
}

void PrefixCache::Forget(plan::BlockId block) {
  Entry& e = entry(block);
  QSERVE_CHECK(e.used);
  QSERVE_CHECK_MSG(e.children == 0, "a block is evicted before its children");
  by_hash_.erase(e.hash);
  if (e.parent >= 0) --entries_[static_cast<size_t>(e.parent)].children;
  e = Entry{};
}

std::string PrefixCache::FindInconsistency() const {
  std::vector<int32_t> children(entries_.size(), 0);
  size_t used = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const plan::BlockId block(static_cast<int32_t>(i));
    const Entry& e = entries_[i];
    if (e.used != pool_.cached(block)) return fmt::format("block {}: cached or not?", i);
    if (!e.used) continue;
    ++used;
    const auto found = by_hash_.find(e.hash);
    if (found == by_hash_.end() || found->second != block) {
      return fmt::format("block {} cannot be found by its hash", i);
    }
    if (e.parent < 0) continue;
    const plan::BlockId parent(e.parent);
    if (!entry(parent).used) return fmt::format("block {} has lost its parent", i);
    if (pool_.references(parent) < pool_.references(block)) {
      return fmt::format("block {} is held without its parent", i);
    }
    ++children[static_cast<size_t>(e.parent)];
  }
  if (used != by_hash_.size()) return "hashes without blocks";
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (children[i] != entries_[i].children) return fmt::format("block {}: children", i);
  }
  return {};
}

}  // namespace qserve::worker::sched
