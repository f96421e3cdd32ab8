// Flattening of SampleRows and reading of results, see sampling_plan.h.
#include "kernels/cuda/sampling_plan.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace qserve::kernels::cuda {
namespace {

constexpr int32_t kNoEdit = -1;

// The row's edit of an id, made if there is none yet.
SamplingEdit& EditOf(int32_t id, size_t first_edit, SamplingScratch& scratch) {
  int32_t& index = scratch.edit_of_id[static_cast<size_t>(id)];
  if (index == kNoEdit) {
    index = static_cast<int32_t>(scratch.edits.size() - first_edit);
    scratch.edits.push_back({.id = id});
  }
  return scratch.edits[first_edit + static_cast<size_t>(index)];
}

bool Penalizes(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

// Appends the row's edits and biases to the scratch.
void CollectEdits(const SampleRow& row, SamplingScratch& scratch) {
  const size_t first_edit = scratch.edits.size(), first_bias = scratch.biases.size();
  if (Penalizes(row)) {
    for (const int32_t id : row.prompt_ids) EditOf(id, first_edit, scratch).in_output = 0;
    for (const int32_t id : row.output_ids) {
      int32_t& count = EditOf(id, first_edit, scratch).in_output;
      count = std::max(count, 0) + 1;
    }
  }
  for (const int32_t id : row.bias_ids) ++EditOf(id, first_edit, scratch).biases;
  for (const int32_t id : row.banned_ids) EditOf(id, first_edit, scratch).banned = 1;
  // An id's biases lie together in the order given, so that their sum has the reference's bits.
  auto next = static_cast<uint32_t>(first_bias);
  for (size_t i = first_edit; i < scratch.edits.size(); ++i) {
    SamplingEdit& edit = scratch.edits[i];
    edit.first_bias = next;
    next += edit.biases;
    edit.biases = 0;
  }
  scratch.biases.resize(next);
  for (size_t i = 0; i < row.bias_ids.size(); ++i) {
    SamplingEdit& edit = EditOf(row.bias_ids[i], first_edit, scratch);
    scratch.biases[edit.first_bias + edit.biases++] = row.bias_values[i];
  }
  for (size_t i = first_edit; i < scratch.edits.size(); ++i) {
    scratch.edit_of_id[static_cast<size_t>(scratch.edits[i].id)] = kNoEdit;
  }
}

SamplingRow Flatten(const SampleRow& row, int32_t mask, size_t first_edit, size_t edits) {
  return {.slot = row.slot,
          .temperature = row.temperature,
          .top_k = row.top_k,
          .top_p = row.top_p,
          .min_p = row.min_p,
          .repetition_penalty = row.repetition_penalty,
          .presence_penalty = row.presence_penalty,
          .frequency_penalty = row.frequency_penalty,
          .seed_low = static_cast<uint32_t>(row.seed),
          .seed_high = static_cast<uint32_t>(row.seed >> 32),
          .candidate = row.candidate,
          .position = row.position,
          .logprobs = row.logprobs,
          .mask = mask,
          .first_edit = static_cast<uint32_t>(first_edit),
          .edits = static_cast<uint32_t>(edits)};
}

int64_t BytesOfLists(const SamplingScratch& scratch) {
  return std::ssize(scratch.edits) * static_cast<int64_t>(sizeof(SamplingEdit)) +
         std::ssize(scratch.biases) * static_cast<int64_t>(sizeof(float));
}

int64_t ResultBytes(int64_t rows, int64_t tops) {
  return rows * static_cast<int64_t>(sizeof(SamplingResult)) +
         tops * static_cast<int64_t>(sizeof(SamplingTop));
}

}  // namespace

StatusOr<SamplingPlan> PlanSampling(std::span<const SampleRow> rows, std::span<const int32_t> masks,
                                    int32_t vocab_size, std::span<std::byte> block,
                                    int64_t result_capacity, SamplingScratch& scratch) {
  QSERVE_CHECK(masks.empty() || masks.size() == rows.size());
  scratch.edit_of_id.resize(static_cast<size_t>(vocab_size), kNoEdit);
  scratch.edits.clear();
  scratch.biases.clear();
  const int64_t capacity = std::ssize(block);
  SamplingPlan plan;
  int64_t tops = 0;
  for (const SampleRow& row : rows) {
    if (row.logprobs > kMaxTopLogprobs) {
      if (plan.rows > 0) break;  // it is named when it is the first
      return Unsupported("Sample: more than " + std::to_string(kMaxTopLogprobs) +
                         " log-probabilities of a row");
    }
    const size_t edits = scratch.edits.size(), biases = scratch.biases.size();
    CollectEdits(row, scratch);
    const int64_t row_tops = tops + std::max(row.logprobs, 0);
    if (SamplingInputBytes(plan.rows + 1) + BytesOfLists(scratch) > capacity ||
        ResultBytes(plan.rows + 1, row_tops) > result_capacity) {
      scratch.edits.resize(edits);
      scratch.biases.resize(biases);
      break;
    }
    SamplingRow flat = Flatten(row, masks.empty() ? -1 : masks[static_cast<size_t>(plan.rows)],
                               edits, scratch.edits.size() - edits);
    flat.first_top = static_cast<uint32_t>(tops);
    std::memcpy(block.data() + SamplingInputBytes(plan.rows), &flat, sizeof flat);
    tops = row_tops;
    ++plan.rows;
  }
  if (plan.rows == 0 && !rows.empty()) {
    return Status(StatusCode::kOutOfMemory,
                  "Sample: the lists of one row exceed the memory for sampling inputs");
  }
  const int64_t edits_offset = SamplingInputBytes(plan.rows);
  const auto edit_bytes = static_cast<int64_t>(scratch.edits.size() * sizeof(SamplingEdit));
  const SamplingHeader header = {.rows = plan.rows,
                                 .edits_offset = static_cast<uint32_t>(edits_offset),
                                 .biases_offset = static_cast<uint32_t>(edits_offset + edit_bytes),
                                 .tops_offset = static_cast<uint32_t>(ResultBytes(plan.rows, 0))};
  std::memcpy(block.data(), &header, sizeof header);
  if (edit_bytes > 0) {
    std::memcpy(block.data() + edits_offset, scratch.edits.data(), static_cast<size_t>(edit_bytes));
  }
  if (!scratch.biases.empty()) {
    std::memcpy(block.data() + edits_offset + edit_bytes, scratch.biases.data(),
                scratch.biases.size() * sizeof(float));
  }
  plan.input_bytes = edits_offset + BytesOfLists(scratch);
  plan.result_bytes = ResultBytes(plan.rows, tops);
  return plan;
}

Status ReadSamplingResults(std::span<const SampleRow> rows, int64_t first_row,
                           std::span<const std::byte> block, std::vector<SampledToken>* results) {
  const auto row_count = std::ssize(rows);
  int64_t tops = 0;
  for (const SampleRow& row : rows) tops += std::max(row.logprobs, 0);
  QSERVE_CHECK(std::ssize(block) >= ResultBytes(row_count, tops));
  const std::byte* top = block.data() + ResultBytes(row_count, 0);
  for (size_t i = 0; i < rows.size(); ++i) {
    SamplingResult result;
    std::memcpy(&result, block.data() + i * sizeof result, sizeof result);
    if (result.outcome != SamplingOutcome::kDrawn) {
      const char* what =
          result.outcome == SamplingOutcome::kNan ? "a logit is NaN" : "every token is banned";
      return {StatusCode::kDevice,
              "Sample: row " + std::to_string(first_row + static_cast<int64_t>(i)) + ": " + what};
    }
    const int32_t asked = std::max(rows[i].logprobs, 0);
    QSERVE_CHECK(result.tops >= 0 && result.tops <= asked);
    SampledToken token{.slot = rows[i].slot, .id = result.id, .logprob = result.logprob, .top = {}};
    for (int32_t k = 0; k < result.tops; ++k) {
      SamplingTop entry;
      std::memcpy(&entry, top + static_cast<size_t>(k) * sizeof entry, sizeof entry);
      token.top.push_back({entry.id, entry.logprob});
    }
    top += static_cast<size_t>(asked) * sizeof(SamplingTop);
    results->push_back(std::move(token));
  }
  return {};
}

}  // namespace qserve::kernels::cuda
