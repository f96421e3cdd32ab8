// Plans of attention: every chunk that a row sees is computed once, and nothing else; limits hold;
// the device is kept busy.
#include "kernels/cuda/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "common/philox.h"

namespace qserve::kernels::cuda {
namespace {

constexpr AttentionDevice kH200 = {.multiprocessors = 132, .shared_bytes = 228 << 10};

// Sequences with block tables, in rows one after another.
struct Step {
  void Add(int64_t first_position, int64_t row_count) {
    const int64_t blocks = (first_position + row_count + kKvPageTokens - 1) / kKvPageTokens;
    std::vector<int32_t>& table = tables.emplace_back();
    for (int64_t i = 0; i < blocks + 2; ++i) table.push_back(next_page++);
    sequences.push_back({rows, row_count, first_position, {}});
    rows += row_count;
  }
  std::span<const SequenceSpan> spans() {
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i].block_table = tables[i];
    return sequences;
  }
  std::vector<std::vector<int32_t>> tables;
  std::vector<SequenceSpan> sequences;
  int64_t rows = 0;
  int32_t next_page = 3;
};

// (row, head, part) -> pages of the chunks that make it.
using Cover = std::map<std::tuple<int32_t, int, int32_t>, std::vector<int32_t>>;

void AddItem(const AttentionModel& model, const AttentionPlan& plan, const AttentionItem& item,
             Cover* cover) {
  const int group = model.heads / model.kv.kv_heads;
  for (int column = item.head; column < item.head + item.columns; ++column) {
    const int32_t row = item.row + column / group;
    const int32_t position = item.position + column / group;
    ASSERT_EQ(plan.positions[static_cast<size_t>(row)], position);
    const int64_t seen =
        model.sliding_window > 0 ? std::max<int64_t>(0, position - model.sliding_window + 1) : 0;
    const auto first = static_cast<int32_t>(seen / 64), last = position / 64;
    const int32_t part = item.whole != 0 ? 0 : item.page_begin / 4 - first / 4;
    if (item.whole == 0) {
      ASSERT_EQ(item.page_begin / 4, (item.page_end - 1) / 4);
      if (item.page_begin / 4 < first / 4 || item.page_begin / 4 > last / 4) continue;
    }
    auto& pages = (*cover)[{row, item.kv_head * group + column % group, part}];
    ASSERT_TRUE(pages.empty()) << "a part is computed twice";
    for (int32_t page = item.page_begin; page < item.page_end; ++page) {
      if (page < first || page > last) continue;  // seen by other rows of the block
      pages.push_back(plan.block_tables[static_cast<size_t>(item.table + page)]);
    }
  }
}

void ExpectCovered(const AttentionModel& model, const AttentionDevice& device, Step* step) {
  AttentionLimits limits = ChooseAttentionLimits(model, device, step->rows + 3);
  limits.table_entries = 1 << 20;
  AttentionPlan plan;
  const Status status = PlanAttention(model, device, limits, step->spans(), &plan);
  ASSERT_TRUE(status.ok()) << status.message();
  const AttentionTiles tiles = ChooseAttentionTiles(model);
  Cover cover;
  for (const AttentionItem& item : plan.narrow) {
    ASSERT_LE(item.columns, 8 * tiles.narrow);
    AddItem(model, plan, item, &cover);
  }
  for (const AttentionItem& item : plan.wide) {
    ASSERT_LE(item.columns, 8 * tiles.wide);
    AddItem(model, plan, item, &cover);
  }
  int32_t parts = 0;
  for (const SequenceSpan& span : step->sequences) {
    for (int64_t i = 0; i < span.row_count; ++i) {
      const auto row = static_cast<size_t>(span.first_row + i);
      const int64_t position = span.first_position + i;
      const int64_t seen =
          model.sliding_window > 0 ? std::max<int64_t>(0, position - model.sliding_window + 1) : 0;
      EXPECT_EQ(plan.positions[row], position);
      EXPECT_EQ(plan.pages[row], span.block_table[static_cast<size_t>(position / 64)]);
      EXPECT_EQ(plan.first_parts[row], parts) << "parts of rows follow each other";
      parts += plan.part_counts[row];
      for (int head = 0; head < model.heads; ++head) {
        std::vector<int32_t> pages;
        for (int32_t part = 0; part < plan.part_counts[row]; ++part) {
          const auto it = cover.find({static_cast<int32_t>(row), head, part});
          ASSERT_NE(it, cover.end()) << "row " << row << " head " << head << " part " << part;
          pages.insert(pages.end(), it->second.begin(), it->second.end());
          cover.erase(it);
        }
        const std::vector<int32_t> expected(span.block_table.begin() + seen / 64,
                                            span.block_table.begin() + position / 64 + 1);
        ASSERT_EQ(pages, expected) << "row " << row << " head " << head;
      }
    }
  }
  EXPECT_TRUE(cover.empty()) << "something else is computed";
  EXPECT_EQ(plan.parts, parts);
  for (size_t row = static_cast<size_t>(step->rows); row < plan.positions.size(); ++row) {
    EXPECT_EQ(plan.positions[row], -1);
    EXPECT_EQ(plan.part_counts[row], 0);
  }
}

TEST(AttentionPlan, CoversEveryChunkOnce) {
  for (uint32_t i = 0; i < 120; ++i) {
    uint32_t use = 0;
    PhiloxBlock random = {};
    const auto draw = [&](uint32_t below) {
      if (use % 4 == 0) random = Philox4x32({i, use, 0, 0}, {99, 1});
      return static_cast<int64_t>(random[use++ % 4] % below);
    };
    AttentionModel model;
    constexpr int kGroups[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 40};
    model.kv = {.format = draw(2) == 0 ? KvFormat::kInt4 : KvFormat::kInt8,
                .kv_heads = static_cast<int>(1 + draw(2)),
                .head_dim = draw(2) == 0 ? 128 : 256};
    model.heads = kGroups[draw(10)] * model.kv.kv_heads;
    model.sliding_window = draw(2) == 0 ? 0 : 1 + draw(700);
    ASSERT_TRUE(CheckAttentionModel(model).ok());
    Step step;
    for (int64_t s = draw(5); s >= 0; --s) {
      step.Add(draw(3) == 0 ? draw(3000) : draw(300), draw(2) == 0 ? 1 : draw(70));
    }
    ExpectCovered(model, draw(2) == 0 ? kH200 : AttentionDevice{.multiprocessors = 1}, &step);
    if (HasFatalFailure()) FAIL() << "case " << i;
  }
}

constexpr AttentionModel kLlama8b = {.heads = 32, .kv = {KvFormat::kInt4, 8, 128}};

AttentionPlan PlanOf(Step* step, AttentionLimits limits) {
  AttentionPlan plan;
  limits.table_entries = 1 << 20;
  const Status status = PlanAttention(kLlama8b, kH200, limits, step->spans(), &plan);
  EXPECT_TRUE(status.ok()) << status.message();
  return plan;
}

TEST(AttentionPlan, SplitsLongSequencesWhenThereIsRoom) {
  Step one;
  one.Add(32767, 1);
  const AttentionPlan split = PlanOf(&one, ChooseAttentionLimits(kLlama8b, kH200, 1));
  EXPECT_EQ(split.narrow.size(), 8u * 128) << "one sequence: every chunk is an item";
  EXPECT_EQ(split.parts, 128);

  Step many;
  for (int i = 0; i < 264; ++i) many.Add(1023, 1);
  const AttentionPlan whole = PlanOf(&many, ChooseAttentionLimits(kLlama8b, kH200, 264));
  EXPECT_EQ(whole.narrow.size(), 264u * 8) << "many equal ones: none is split";
  EXPECT_EQ(whole.parts, 264);

  // Without room for parts the step is computed all the same.
  AttentionLimits tight = ChooseAttentionLimits(kLlama8b, kH200, 1);
  tight.parts = 1;
  const AttentionPlan unsplit = PlanOf(&one, tight);
  EXPECT_EQ(unsplit.narrow.size(), 8u);
  EXPECT_EQ(unsplit.narrow[0].whole, 1);
}

TEST(AttentionPlan, PutsTheMostWorkFirst) {
  Step step;
  for (int i = 0; i < 300; ++i) step.Add(i * 7, 1);
  const AttentionPlan plan = PlanOf(&step, ChooseAttentionLimits(kLlama8b, kH200, 300));
  EXPECT_TRUE(std::is_sorted(plan.narrow.begin(), plan.narrow.end(),
                             [](const AttentionItem& a, const AttentionItem& b) {
                               return a.page_end - a.page_begin > b.page_end - b.page_begin;
                             }));
}

TEST(AttentionPlan, RefusesWhatDoesNotFit) {
  Step step;
  step.Add(1000, 4);
  AttentionPlan plan;
  AttentionLimits limits = ChooseAttentionLimits(kLlama8b, kH200, 4);
  limits.table_entries = 15;
  EXPECT_EQ(PlanAttention(kLlama8b, kH200, limits, step.spans(), &plan).code(),
            StatusCode::kOutOfMemory);
  limits.table_entries = 16;
  EXPECT_TRUE(PlanAttention(kLlama8b, kH200, limits, step.spans(), &plan).ok());
  limits.items = 7;
  EXPECT_EQ(PlanAttention(kLlama8b, kH200, limits, step.spans(), &plan).code(),
            StatusCode::kOutOfMemory);
  limits = ChooseAttentionLimits(kLlama8b, kH200, 3);
  limits.table_entries = 16;
  EXPECT_EQ(PlanAttention(kLlama8b, kH200, limits, step.spans(), &plan).code(),
            StatusCode::kInvalidArgument);
}

TEST(AttentionPlan, BlocksFillTheDevice) {
  const AttentionTiles tiles = ChooseAttentionTiles(kLlama8b);
  EXPECT_EQ(tiles.narrow, 1);
  EXPECT_EQ(tiles.wide, 4);
  EXPECT_EQ(AttentionBlocks(kLlama8b, 1, kH200), 4 * 132);
  EXPECT_EQ(AttentionBlocks(kLlama8b, 1, {.multiprocessors = 108, .shared_bytes = 164 << 10}),
            4 * 108);
  // 100 KiB of shared memory: an L40S.
  EXPECT_EQ(AttentionBlocks(kLlama8b, 1, {.multiprocessors = 142, .shared_bytes = 100 << 10}),
            3 * 142);
  for (const int group : {1, 8, 9, 16, 17, 64}) {
    AttentionModel model = kLlama8b;
    model.heads = group * model.kv.kv_heads;
    EXPECT_EQ(ChooseAttentionTiles(model).narrow, group <= 8 ? 1 : group <= 16 ? 2 : 4);
  }
}

}  // namespace
}  // namespace qserve::kernels::cuda
