// The generator of random weights agrees with its Python twin
// (tests/golden/models/random_weights.py prints these values) and does not depend on where a piece
// begins.
#include "worker/checkpoint/random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace qserve::worker::checkpoint {
namespace {

TEST(RandomWeights, HashIsFnv1a) {
  EXPECT_EQ(Fnv1a32(""), 0x811c9dc5u);
  EXPECT_EQ(Fnv1a32("foobar"), 0xbf9cf968u);
}

TEST(RandomWeights, AgreesWithPython) {
  const TensorSpec query{
      "model.layers.0.self_attn.q_proj.weight", {4, 64}, TensorRole::kLinearWeight};
  std::vector<float> values(256);
  FillRandom(query.name, 1, RangeOf(query), 0, values);
  EXPECT_EQ(values[0], -0x1.2c5c040000000p-3f);
  EXPECT_EQ(values[1], 0x1.29a9a00000000p-4f);
  EXPECT_EQ(values[5], 0x1.408d280000000p-3f);
  EXPECT_EQ(values[255], 0x1.43f92a0000000p-3f);
  const TensorSpec head{"lm_head.weight", {4, 48}, TensorRole::kHead};
  values.resize(192);
  FillRandom(head.name, 7, RangeOf(head), 0, values);
  EXPECT_EQ(values[0], 0x1.5561700000000p-4f);
  EXPECT_EQ(values[191], 0x1.4fbe5c0000000p-3f);
  const TensorSpec gain{"model.norm.weight", {8}, TensorRole::kNormGain};
  values.resize(8);
  FillRandom(gain.name, 3, RangeOf(gain), 0, values);
  EXPECT_EQ(values[0], 0x1.0051be0000000p+0f);
  EXPECT_EQ(values[3], 0x1.fa1c380000000p-1f);
  EXPECT_EQ(values[7], 0x1.d7afd00000000p-1f);
}

TEST(RandomWeights, APieceIsThatPieceOfTheWhole) {
  std::vector<float> whole(101);
  FillRandom("tensor", 5, {2.0f, 0.0f}, 0, whole);
  for (int64_t begin = 0; begin < 9; ++begin) {
    std::vector<float> piece(50);
    FillRandom("tensor", 5, {2.0f, 0.0f}, begin, piece);
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + begin)) << begin;
  }
}

TEST(RandomWeights, IsUniform) {
  std::vector<float> values(100000);
  FillRandom("tensor", 11, {1.0f, 0.0f}, 0, values);
  double sum = 0, squares = 0;
  for (const float value : values) {
    ASSERT_GE(value, -1.0f);
    ASSERT_LT(value, 1.0f);
    sum += value;
    squares += double{value} * value;
  }
  EXPECT_NEAR(sum / 1e5, 0.0, 0.01);
  EXPECT_NEAR(squares / 1e5, 1.0 / 3.0, 0.01);
}

}  // namespace
}  // namespace qserve::worker::checkpoint
