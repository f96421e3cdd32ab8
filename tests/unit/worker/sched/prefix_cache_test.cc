// Prefixes are found by their tokens alone: equal hashes, other salts and other parents do not
// match.
#include "worker/sched/prefix_cache.h"

#include <gtest/gtest.h>

#include <array>

namespace qserve::worker::sched {
namespace {

using plan::BlockId;
using Tokens = std::array<int32_t, plan::kBlockTokens>;

Tokens Filled(int32_t value) {
  Tokens tokens;
  tokens.fill(value);
  return tokens;
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  explicit PrefixCacheTest(uint64_t hash_mask = ~uint64_t{0}) : cache_(pool_, hash_mask) {}

  PrefixCache::Place First(const Tokens& tokens, uint64_t salt = 0) const {
    return {.parent = std::nullopt,
            .salt = salt,
            .hash = cache_.ChainHash(cache_.RootHash(salt), tokens)};
  }
  PrefixCache::Place After(const PrefixCache::Place& place, BlockId parent,
                           const Tokens& tokens) const {
    return {.parent = parent, .salt = place.salt, .hash = cache_.ChainHash(place.hash, tokens)};
  }

  BlockPool pool_{4};
  PrefixCache cache_;
};

TEST_F(PrefixCacheTest, FindsWhatWasEntered) {
  const Tokens one = Filled(1), two = Filled(2);
  const BlockId a = cache_.Allocate(), b = cache_.Allocate();
  EXPECT_EQ(cache_.Find(First(one), one), std::nullopt);
  EXPECT_EQ(cache_.Insert(First(one), one, a), a);
  EXPECT_EQ(cache_.Insert(After(First(one), a, two), two, b), b);
  EXPECT_EQ(cache_.Find(First(one), one), a);
  EXPECT_EQ(cache_.Find(After(First(one), a, two), two), b);
  EXPECT_EQ(cache_.Find(First(two), two), std::nullopt);  // the second block is no first one
  EXPECT_EQ(cache_.FindInconsistency(), "");
}

TEST_F(PrefixCacheTest, SaltsKeepPrefixesApart) {
  const Tokens one = Filled(1);
  const BlockId a = cache_.Allocate();
  cache_.Insert(First(one, 5), one, a);
  EXPECT_EQ(cache_.Find(First(one, 5), one), a);
  EXPECT_EQ(cache_.Find(First(one, 6), one), std::nullopt);
}

TEST_F(PrefixCacheTest, AnEarlierEqualBlockTakesOver) {
  const Tokens one = Filled(1);
  const BlockId a = cache_.Allocate(), b = cache_.Allocate();
  cache_.Insert(First(one), one, a);
  EXPECT_EQ(cache_.Insert(First(one), one, b), a);
  EXPECT_EQ(pool_.references(a), 2);
  EXPECT_EQ(pool_.references(b), 0);
  EXPECT_EQ(pool_.available(), 3);
}

TEST_F(PrefixCacheTest, EvictsTheOldestAndForgetsIt) {
  std::array<BlockId, 4> blocks;
  for (int32_t i = 0; i < 4; ++i) {
    const Tokens tokens = Filled(i);
    blocks[static_cast<size_t>(i)] = cache_.Allocate();
    cache_.Insert(First(tokens), tokens, blocks[static_cast<size_t>(i)]);
  }
  for (const BlockId block : blocks) pool_.DropReference(block);
  EXPECT_EQ(pool_.available(), 4);
  EXPECT_EQ(cache_.Allocate(), blocks[0]);
  EXPECT_EQ(cache_.entries(), 3);
  EXPECT_EQ(cache_.Find(First(Filled(0)), Filled(0)), std::nullopt);
  EXPECT_EQ(cache_.Find(First(Filled(1)), Filled(1)), blocks[1]);
  EXPECT_EQ(cache_.FindInconsistency(), "");
}

TEST_F(PrefixCacheTest, LeavesGoFirst) {
  const Tokens one = Filled(1), two = Filled(2), three = Filled(3);
  const BlockId root = cache_.Allocate(), left = cache_.Allocate(), right = cache_.Allocate();
  cache_.Insert(First(one), one, root);
  cache_.Insert(After(First(one), root, two), two, left);
  cache_.Insert(After(First(one), root, three), three, right);
  pool_.AddReference(root);  // two sequences: root-left and root-right
  pool_.DropReference(left);
  pool_.DropReference(root);
  pool_.DropReference(right);
  pool_.DropReference(root);
  cache_.Allocate();  // the free one
  EXPECT_EQ(cache_.Allocate(), left);
  EXPECT_EQ(cache_.Allocate(), right);
  EXPECT_EQ(cache_.Allocate(), root);
  EXPECT_EQ(cache_.entries(), 0);
}

class CollidingPrefixCacheTest : public PrefixCacheTest {
 protected:
  CollidingPrefixCacheTest() : PrefixCacheTest(0) {}  // every hash is 0
};

TEST_F(CollidingPrefixCacheTest, EqualHashesOfOtherTokensAreMisses) {
  const Tokens one = Filled(1), two = Filled(2);
  const BlockId a = cache_.Allocate(), b = cache_.Allocate();
  EXPECT_EQ(cache_.Insert(First(one), one, a), a);
  EXPECT_EQ(cache_.Find(First(two), two), std::nullopt);
  EXPECT_EQ(cache_.Insert(First(two), two, b), std::nullopt);
  EXPECT_EQ(cache_.Find(First(one), one), a);
  EXPECT_FALSE(pool_.cached(b));
}

TEST_F(CollidingPrefixCacheTest, EqualTokensElsewhereAreMisses) {
  const Tokens one = Filled(1);
  const BlockId a = cache_.Allocate();
  cache_.Insert(First(one), one, a);
  EXPECT_EQ(cache_.Find(After(First(one), a, one), one), std::nullopt);
  EXPECT_EQ(cache_.Find(First(one, 9), one), std::nullopt);
}

}  // namespace
}  // namespace qserve::worker::sched
