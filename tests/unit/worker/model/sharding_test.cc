// The cuts of tensor parallelism: they cover the model once, keep grouped-query attention's mapping
// and say why not otherwise.
#include "worker/model/sharding.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qserve::worker::model {
namespace {

using checkpoint::ModelConfig;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig Config(int heads, int kv_heads, int64_t intermediate, int64_t vocab) {
  ModelConfig config;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = 64;
  config.intermediate_size = intermediate;
  config.vocab_size = vocab;
  return config;
}

TEST(Sharding, OneRankHoldsEverything) {
  const auto shard = MakeShard(Config(12, 4, 1000, 300), 0, 1);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->heads.size(), 12);
  EXPECT_THAT(shard->kv_heads, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(shard->intermediate.begin, 0);
  EXPECT_EQ(shard->intermediate.end, 1000);
  EXPECT_EQ(shard->vocab.size(), 300);
  EXPECT_EQ(shard->vocab_rows, 320);
}

TEST(Sharding, RanksCoverTheModelOnceAndCutAtMultiplesOf32) {
  const ModelConfig config = Config(16, 8, 11008, 32003);
  for (const int size : {1, 2, 4, 8, 16}) {
    int64_t head = 0, column = 0, id = 0, vocab_rows = -1;
    for (int rank = 0; rank < size; ++rank) {
      const auto shard = MakeShard(config, rank, size);
      ASSERT_TRUE(shard.ok()) << shard.status();
      EXPECT_EQ(shard->heads.begin, head);
      EXPECT_EQ(shard->intermediate.begin, column);
      EXPECT_EQ(shard->intermediate.begin % kCutMultiple, 0);
      EXPECT_GT(shard->intermediate.size(), 0);
      EXPECT_EQ(shard->vocab.begin, id);
      EXPECT_LE(shard->vocab.size(), shard->vocab_rows);
      if (vocab_rows >= 0) {
        EXPECT_EQ(shard->vocab_rows, vocab_rows);
      }
      head = shard->heads.end;
      column = shard->intermediate.end;
      id = shard->vocab.end;
      vocab_rows = shard->vocab_rows;
    }
    EXPECT_EQ(head, 16);
    EXPECT_EQ(column, 11008);
    EXPECT_EQ(id, 32003);
  }
}

TEST(Sharding, EveryLocalHeadReadsItsOwnKvHead) {
  // Qwen2.5-7B has 28 query heads on 4 kv heads: some degrees cut through a group of 7.
  for (const auto& [heads, kv_heads] :
       std::vector<std::pair<int, int>>{{28, 4}, {32, 8}, {12, 4}, {6, 6}, {8, 1}}) {
    const ModelConfig config = Config(heads, kv_heads, 4096, 1000);
    for (const int size : LegalDegrees(config)) {
      for (int rank = 0; rank < size; ++rank) {
        const auto shard = MakeShard(config, rank, size);
        ASSERT_TRUE(shard.ok()) << shard.status();
        ASSERT_EQ(shard->local_heads() % shard->local_kv_heads(), 0);
        const int local_group = shard->local_heads() / shard->local_kv_heads();
        for (int h = 0; h < shard->local_heads(); ++h) {
          EXPECT_EQ(shard->kv_heads[static_cast<size_t>(h / local_group)],
                    (shard->heads.begin + h) / (heads / kv_heads));
        }
      }
    }
  }
}

TEST(Sharding, KvHeadsAreReplicatedBeyondTheirNumber) {
  const ModelConfig config = Config(4, 2, 768, 4096);
  EXPECT_THAT(MakeShard(config, 0, 4)->kv_heads, ElementsAre(0));
  EXPECT_THAT(MakeShard(config, 1, 4)->kv_heads, ElementsAre(0));
  EXPECT_THAT(MakeShard(config, 3, 4)->kv_heads, ElementsAre(1));
  EXPECT_EQ(MakeShard(config, 1, 4)->intermediate.begin % 128,
            64);  // 768 / 4 straddles groups of 128
}

TEST(Sharding, SmallVocabularyLeavesLastRanksEmpty) {
  const ModelConfig config = Config(4, 4, 256, 40);
  EXPECT_EQ(MakeShard(config, 1, 4)->vocab.size(), 8);
  EXPECT_EQ(MakeShard(config, 2, 4)->vocab.size(), 0);
  EXPECT_EQ(MakeShard(config, 3, 4)->vocab.begin, 40);
  EXPECT_EQ(MakeShard(config, 3, 4)->vocab_rows, 32);
}

TEST(Sharding, RefusesOtherDegreesNamingTheLegalOnes) {
  const ModelConfig config = Config(12, 4, 1024, 300);
  EXPECT_THAT(LegalDegrees(config), ElementsAre(1, 2, 3, 4, 6, 12));
  const auto shard = MakeShard(config, 0, 5);
  EXPECT_EQ(shard.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(shard.status().message()), HasSubstr("1, 2, 3, 4, 6, 12"));
  EXPECT_FALSE(MakeShard(config, 4, 4).ok());
  EXPECT_FALSE(MakeShard(config, -1, 4).ok());
  EXPECT_FALSE(MakeShard(config, 0, 0).ok());
  EXPECT_THAT(LegalDegrees(Config(12, 4, 64, 300)), ElementsAre(1, 2));  // two units of 32 columns
}

}  // namespace
}  // namespace qserve::worker::model
