// Blocks are counted, reused in the order of their age, and never lost.
#include "worker/sched/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace qserve::worker::sched {
namespace {

using plan::BlockId;
using ::testing::ElementsAre;

TEST(BlockPool, HandsOutEveryBlockOnce) {
  BlockPool pool(3);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.TakeFree(), BlockId(0));
  EXPECT_EQ(pool.TakeFree(), BlockId(1));
  EXPECT_EQ(pool.TakeFree(), BlockId(2));
  EXPECT_EQ(pool.TakeFree(), std::nullopt);
  EXPECT_EQ(pool.TakeOldestIdle(), std::nullopt);
  EXPECT_EQ(pool.available(), 0);
}

TEST(BlockPool, SharedBlocksStayUntilTheLastReferenceIsDropped) {
  BlockPool pool(1);
  const BlockId block = *pool.TakeFree();
  pool.AddReference(block);
  pool.DropReference(block);
  EXPECT_EQ(pool.available(), 0);
  pool.DropReference(block);
  EXPECT_EQ(pool.available(), 1);
  EXPECT_EQ(pool.idle(), 0);
}

TEST(BlockPool, CachedBlocksBecomeIdleAndAreTakenOldestFirst) {
  BlockPool pool(3);
  const BlockId a = *pool.TakeFree(), b = *pool.TakeFree(), c = *pool.TakeFree();
  for (const BlockId block : {a, b, c}) pool.MarkCached(block);
  pool.DropReference(b);
  pool.DropReference(a);
  pool.DropReference(c);
  EXPECT_THAT(pool.IdleBlocks(), ElementsAre(b, a, c));
  pool.AddReference(a);  // from the middle of the list
  pool.DropReference(a);
  EXPECT_THAT(pool.IdleBlocks(), ElementsAre(b, c, a));
  EXPECT_EQ(pool.TakeFree(), std::nullopt);
  EXPECT_EQ(pool.TakeOldestIdle(), b);
  EXPECT_FALSE(pool.cached(b));
  EXPECT_EQ(pool.available(), 2);
  EXPECT_EQ(pool.FindInconsistency(), "");
}

TEST(BlockPoolDeathTest, DroppingTooOftenIsABug) {
  BlockPool pool(1);
  const BlockId block = *pool.TakeFree();
  pool.DropReference(block);
  EXPECT_DEATH(pool.DropReference(block), "references");
}

TEST(BlockPool, StaysConsistentUnderRandomUse) {
  std::mt19937 random(7);
  BlockPool pool(13);
  std::vector<BlockId> references;
  for (int step = 0; step < 5000; ++step) {
    switch (random() % 4) {
      case 0:
        if (const auto block = pool.TakeFree()) {
          references.push_back(*block);
        } else if (const auto idle = pool.TakeOldestIdle()) {
          references.push_back(*idle);
        }
        break;
      case 1:
        if (references.empty()) break;
        references.push_back(references[random() % references.size()]);
        pool.AddReference(references.back());
        break;
      case 2:
        if (!references.empty()) pool.MarkCached(references[random() % references.size()]);
        break;
      default:
        if (references.empty()) break;
        std::swap(references.back(), references[random() % references.size()]);
        pool.DropReference(references.back());
        references.pop_back();
    }
    ASSERT_EQ(pool.FindInconsistency(), "");
  }
}

}  // namespace
}  // namespace qserve::worker::sched
