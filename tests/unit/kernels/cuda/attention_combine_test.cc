// The merging of a row's many parts by many blocks: the bits of merging them one by one.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/emulator/emulator.h"

namespace qserve::kernels::cuda {
namespace {

struct Shape {
  int heads;
  int head_dim;
};

class Random {
 public:
  float Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }

 private:
  uint64_t state_ = 7;
};

// `rows` rows of which row 0 has `count` parts, row 1 one and the others none; rows 0 and 1.
std::vector<float> Combine(const Shape& shape, int32_t count, int64_t rows, uint64_t seed) {
  const int columns = shape.heads * shape.head_dim;
  Random random;
  struct alignas(16) Four {
    float value[4];
  };
  std::vector<Four> parts(static_cast<size_t>((count + 1) * columns / 4));
  for (Four& four : parts) {
    for (float& value : four.value) value = random.Next();
  }
  std::vector<Four> weights(static_cast<size_t>(((count + 1) * shape.heads + 1) / 2));
  for (Four& four : weights) {
    four = {{20 * random.Next(), 1 + std::fabs(random.Next()), 20 * random.Next(), 1.5f}};
  }
  // Parts that nothing has been seen of.
  weights[0].value[0] = -std::numeric_limits<float>::infinity();
  weights[0].value[1] = 0;
  std::vector<int32_t> first_parts(static_cast<size_t>(rows)), part_counts(first_parts);
  part_counts[0] = count;
  first_parts[1] = count;
  part_counts[1] = 1;
  std::vector<int32_t> arrived(static_cast<size_t>(rows));
  std::vector<float> out(static_cast<size_t>(rows * columns));
  emulator::Stream stream(seed);
  AttentionCombineLaunch launch = {.parts = {.out = parts.data()->value,
                                             .weights = weights.data()->value,
                                             .first_parts = first_parts.data(),
                                             .part_counts = part_counts.data()},
                                   .heads = shape.heads,
                                   .head_dim = shape.head_dim,
                                   .arrived = arrived.data()};
  launch.out.rows = rows;
  launch.out.cols = columns;
  launch.out.f32 = out.data();
  launch.out.f32_stride = columns;
  EXPECT_EQ(LaunchAttentionCombine(&stream, launch), 0);
  stream.Synchronize();
  out.resize(static_cast<size_t>(2 * columns));
  return out;
}

TEST(AttentionCombine, ManyBlocksHaveTheBitsOfOne) {
  for (const Shape shape : {Shape{3, 64}, Shape{3, 96}, Shape{2, 128}, Shape{1, 256}}) {
    for (const int32_t count : {8, 9, 32, 70, 128}) {
      const std::vector<float> one_block = Combine(shape, count, 256, 1);
      const std::vector<float> blocks = Combine(shape, count, 2, 2);
      ASSERT_EQ(one_block.size(), blocks.size());
      for (size_t i = 0; i < blocks.size(); ++i) {
        ASSERT_TRUE(std::isfinite(blocks[i]));
        ASSERT_EQ(one_block[i], blocks[i]) << shape.head_dim << ", " << count << ", " << i;
      }
    }
  }
}

}  // namespace
}  // namespace qserve::kernels::cuda
