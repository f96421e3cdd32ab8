// Which steps are recorded, which recording serves a step, and the steps of a start-up.
#include "worker/exec/step_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "worker/exec/warm_step.h"

namespace qserve::worker::exec {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Lt;

ExecutorLimits Limits(int32_t slots, int64_t max_step_tokens) {
  return {.slots = slots,
          .blocks = 8,
          .max_step_tokens = max_step_tokens,
          .max_model_len = 130,
          .kv_bytes_per_token = 1};
}

TEST(RecordedRows, AreDenseWhereStepsAreShortAndEndAtTheLargestStep) {
  EXPECT_THAT(RecordedRows(Limits(1, 100)), ElementsAre(1));
  EXPECT_THAT(RecordedRows(Limits(30, 2048)), ElementsAre(1, 2, 4, 8, 16, 24, 30));
  EXPECT_THAT(RecordedRows(Limits(30, 5)), ElementsAre(1, 2, 4, 5)) << "fewer tokens than slots";
  const std::vector<int32_t> many = RecordedRows(Limits(4096, 8192));
  EXPECT_EQ(many.back(), 4096);
  EXPECT_LT(many.size(), 64u);
  EXPECT_TRUE(std::is_sorted(many.begin(), many.end()));
}

// A step of sequences with the given numbers of rows, the first `sampled` of which draw.
StepBatch Batch(const std::vector<int64_t>& rows, size_t sampled) {
  StepBatch batch;
  for (const int64_t count : rows) {
    batch.sequences.push_back({.row_count = count});
    batch.token_ids.resize(batch.token_ids.size() + static_cast<size_t>(count));
    if (batch.logit_rows.size() < sampled) {
      batch.logit_rows.push_back(static_cast<int32_t>(batch.token_ids.size()) - 1);
    }
  }
  return batch;
}

TEST(StepKey, IsTheNextRecordingOfADecodingStep) {
  const std::vector<int32_t> recorded = {1, 2, 4, 6};
  EXPECT_EQ(StepKey(Batch({1}, 1), recorded), 1u);
  EXPECT_EQ(StepKey(Batch({1, 1, 1}, 3), recorded), 4u);
  EXPECT_EQ(StepKey(Batch({1, 1, 1, 1, 1, 1}, 6), recorded), 6u);
  EXPECT_EQ(StepKey(Batch({1, 1, 1, 1, 1, 1, 1}, 7), recorded), 0u) << "larger than all";
  EXPECT_EQ(StepKey(Batch({1, 2}, 2), recorded), 0u) << "a prompt's chunk";
  EXPECT_EQ(StepKey(Batch({1, 1}, 1), recorded), 0u) << "a row that draws nothing";
  EXPECT_EQ(StepKey(Batch({}, 0), recorded), 0u);
  EXPECT_EQ(StepKey(Batch({1}, 1), {}), 0u) << "nothing is recorded";
}

TEST(WarmStep, NoTwoSequencesWriteToAPageWhereThereAreEnough) {
  ExecutorLimits limits = Limits(9, 300);
  limits.blocks = 0;
  const WarmStep steps[] = {WarmStep::Prefill(limits), WarmStep::Mixed(limits),
                            WarmStep::Decode(limits, 7)};
  for (const WarmStep& step : steps) {
    std::set<int32_t> written;
    int64_t pages = 0;
    for (const kernels::SequenceSpan& sequence : step.inputs().sequences) {
      const int64_t own = (sequence.row_count + plan::kBlockTokens - 1) / plan::kBlockTokens;
      for (int64_t i = 0; i < own; ++i)
        written.insert(sequence.block_table[static_cast<size_t>(i)]);
      pages += own;
    }
    EXPECT_EQ(std::ssize(written), pages);
    EXPECT_EQ(*written.rbegin(), pages - 1);
    EXPECT_EQ(step.pages(), pages);
  }
  limits.blocks = 2;
  const WarmStep step = WarmStep::Decode(limits, 7);
  EXPECT_EQ(step.pages(), 2);
  for (const kernels::SequenceSpan& sequence : step.inputs().sequences) {
    EXPECT_THAT(sequence.block_table, Each(Lt(2)));
  }
}

TEST(WarmStep, IsAsLargeAsStepsMayBe) {
  const WarmStep decode = WarmStep::Decode(Limits(4, 300), 3);
  const model::StepInputs inputs = decode.inputs();
  EXPECT_EQ(inputs.token_ids.size(), 3u);
  EXPECT_EQ(inputs.sampling.size(), 3u);
  EXPECT_THAT(inputs.logit_rows, ElementsAre(0, 1, 2));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(inputs.sequences[i].row_count, 1);
    EXPECT_EQ(inputs.sequences[i].block_table.size(), 3u);
    EXPECT_EQ(inputs.sequences[i].block_table[0], static_cast<int32_t>(i));
  }
  const WarmStep prefill = WarmStep::Prefill(Limits(4, 300));
  EXPECT_EQ(prefill.inputs().token_ids.size(), 300u);
  ASSERT_EQ(prefill.inputs().sequences.size(), 3u);
  EXPECT_EQ(prefill.inputs().sequences[2].first_row, 260);
  EXPECT_EQ(prefill.inputs().sequences[2].row_count, 40);
  EXPECT_THAT(prefill.inputs().sampling, IsEmpty());
  const WarmStep mixed = WarmStep::Mixed(Limits(4, 100));
  EXPECT_EQ(mixed.inputs().token_ids.size(), 100u);
  ASSERT_EQ(mixed.inputs().sequences.size(), 4u);
  EXPECT_EQ(mixed.inputs().sequences[3].first_row, 3);
  EXPECT_EQ(mixed.inputs().sequences[3].row_count, 97);
  EXPECT_EQ(WarmStep::Mixed(Limits(9, 4)).inputs().sequences.size(), 4u) << "a token each";
}

}  // namespace
}  // namespace qserve::worker::exec
