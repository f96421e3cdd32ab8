// RoPE with append on the emulated GPU: q, codes, scales and minimums of the CPU's reference, to
// the bit, for every format and both activation types.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/quant/half.h"
#include "tests/unit/kernels/cuda/attention_rig.h"

namespace qserve::kernels::cuda::testing {
namespace {

using ::qserve::kernels::testing::ReferenceOps;
using ::qserve::kernels::testing::Rig;

// Every position of the step's sequences is stored as on the CPU.
void ExpectSameStored(const KvWorld& world, const GpuWorld& gpu, const KvWorld::Step& step,
                      const std::string& name) {
  for (const SequenceSpan& span : step.spans) {
    for (int64_t i = 0; i < span.row_count; ++i) {
      const int64_t position = span.first_position + i;
      const int32_t page = span.block_table[static_cast<size_t>(position / kKvPageTokens)];
      const int slot = static_cast<int>(position % kKvPageTokens);
      for (int head = 0; head < world.kv().kv_heads; ++head) {
        for (const bool is_value : {false, true}) {
          ASSERT_TRUE(gpu.Read(page, head, slot, is_value) ==
                      ReadCpu(world, page, head, slot, is_value))
              << name << " position " << position << (is_value ? " value" : " key");
        }
      }
    }
  }
}

void ExpectSameQueries(const KvWorld& world, const KvWorld::Step& step, const HalfRows& rows,
                       const std::string& name) {
  const std::vector<float> got = rows.Floats();
  for (int64_t r = 0; r < step.rows; ++r) {
    for (int64_t c = 0; c < world.out_width(); ++c) {
      const auto at = static_cast<size_t>(r * world.row_width() + c);
      const float exact = step.qkv[at];
      const float expected =
          rows.type == FloatType::kF16 ? RoundToHalf(exact) : Bf16ToFloat(FloatToBf16(exact));
      ASSERT_EQ(got[at], expected) << name << " row " << r << " channel " << c;
    }
  }
}

TEST(GpuRopeAppend, HasTheBitsOfTheCpu) {
  for (const KvFormat format : {KvFormat::kInt4, KvFormat::kInt8, KvFormat::kF16}) {
    for (const int dim : {64, 96, 128, 256}) {
      const AttentionCase c{.heads = 3,
                            .kv_heads = 1 + dim / 96 % 2,
                            .head_dim = dim,
                            .format = format,
                            .qk_norm = dim != 64};
      AttentionCase shape = c;
      shape.heads = 3 * c.kv_heads;
      const FloatType type = dim == 96 || dim == 256 ? FloatType::kBf16 : FloatType::kF16;
      KvWorld world(shape, 700, 2);
      GpuWorld gpu(world);
      KvWorld::Step step = world.MakeStep({{60, 7}, {511, 1}, {0, 2}});
      if (dim ==
          64) {  // a key of equal values, a value of zeros and one that is too large for fp16
        const auto heads = static_cast<ptrdiff_t>(shape.heads * dim);
        std::fill_n(step.qkv.begin() + heads + dim * shape.kv_heads, dim, 0.0f);
        std::fill_n(step.qkv.begin() + world.row_width() + heads + dim * shape.kv_heads, dim, 1.5f);
      }
      RoundRows(type, &step);
      const HalfRows rows(step.qkv, step.rows, type);
      gpu.Append(step, rows, {.order_seed = static_cast<uint64_t>(dim)});
      Rig rig(1);
      ASSERT_TRUE(world.Append(ReferenceOps(), rig, step).ok());
      const std::string name = shape.Name();
      ExpectSameQueries(world, step, rows, name);
      ExpectSameStored(world, gpu, step, name);
    }
  }
}

TEST(GpuRopeAppend, LeavesRowsOfPaddingAlone) {
  const AttentionCase shape{.heads = 2, .kv_heads = 2, .head_dim = 64};
  KvWorld world(shape, 128, 2);
  GpuWorld gpu(world);
  KvWorld::Step step = world.MakeStep({{5, 1}});
  RoundRows(FloatType::kF16, &step);
  std::vector<float> padded = step.qkv;
  padded.resize(step.qkv.size() * 4, 3.0f);
  const HalfRows rows(padded, 4, FloatType::kF16);
  gpu.Append(step, rows, {.rows = 4});
  const std::vector<float> after = rows.Floats();
  for (size_t i = step.qkv.size(); i < after.size(); ++i) ASSERT_EQ(after[i], 3.0f);
  // One token of two heads was written, and nothing else.
  const auto* bytes = reinterpret_cast<const uint8_t*>(gpu.memory().data());
  int64_t written = 0;
  for (size_t i = 0; i < gpu.memory().size() * 16; ++i) written += bytes[i] != 0xff ? 1 : 0;
  EXPECT_LE(written, 2 * 2 * (64 / 2 + 4));
  EXPECT_GT(written, 2 * 2 * (64 / 2 + 4) / 2);
}

// Pages hold what was put in: no two elements share bits.
TEST(GpuKvPage, ElementsHavePlacesOfTheirOwn) {
  for (const KvFormat format : {KvFormat::kInt4, KvFormat::kInt8, KvFormat::kF16}) {
    for (const int dim : {64, 96, 128, 256}) {
      const AttentionCase shape{.heads = 1, .kv_heads = 1, .head_dim = dim, .format = format};
      KvWorld world(shape, 64, 2);
      KvWorld::Step step = world.MakeStep({{0, 64}});
      Rig rig(1);
      ASSERT_TRUE(world.Append(ReferenceOps(), rig, step).ok());
      GpuWorld gpu(world);
      gpu.CopyPages();
      ExpectSameStored(world, gpu, step, shape.Name());
    }
  }
}

}  // namespace
}  // namespace qserve::kernels::cuda::testing
