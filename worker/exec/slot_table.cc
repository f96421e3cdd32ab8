#include "worker/exec/slot_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"

namespace qserve::worker::exec {
namespace {

template <class... Args>
absl::Status Refuse(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError("plan: " + fmt::format(format, std::forward<Args>(args)...));
}

int64_t BlocksFor(int64_t tokens) { return (tokens + plan::kBlockTokens - 1) / plan::kBlockTokens; }

}  // namespace

SlotTable::SlotTable(const ExecutorLimits& limits, int32_t vocab_size)
    : limits_(limits), vocab_size_(vocab_size), slots_(static_cast<size_t>(limits.slots)) {}

absl::StatusOr<StepBatch> SlotTable::Apply(const plan::StepPlan& plan) {
  for (const plan::SlotId id : plan.ends) RETURN_IF_ERROR(End(id));
  for (const plan::SlotStart& start : plan.starts) RETURN_IF_ERROR(Start(start));
  for (const plan::BlockDelta& delta : plan.block_deltas) RETURN_IF_ERROR(SetBlocks(delta));
  if (plan.token_count() > limits_.max_step_tokens) {
    return Refuse("{} tokens, a step has at most {}", plan.token_count(), limits_.max_step_tokens);
  }
  for (std::optional<Slot>& slot : slots_) {
    if (slot) slot->in_step = false;
  }
  StepBatch batch;
  for (const plan::SequenceRows& rows : plan.rows) RETURN_IF_ERROR(AddRows(rows, batch));
  return batch;
}

bool SlotTable::NeedsResults(const plan::StepPlan& plan) const {
  return std::any_of(plan.rows.begin(), plan.rows.end(), [&](const plan::SequenceRows& rows) {
    const int32_t id = rows.slot.value();
    if (!rows.sample || id < 0 || id >= limits_.slots) return false;
    const std::optional<Slot>& slot = slots_[static_cast<size_t>(id)];
    return slot && slot->start.sampling.needs_history();
  });
}

void SlotTable::Record(const StepBatch& batch, const plan::StepResult& result) {
  QSERVE_CHECK(batch.sequence_numbers.size() == result.tokens.size());
  for (size_t i = 0; i < result.tokens.size(); ++i) {
    const plan::SampledToken& token = result.tokens[i];
    std::optional<Slot>& slot = slots_[static_cast<size_t>(token.slot.value())];
    if (!slot || slot->sequence_number != batch.sequence_numbers[i]) continue;
    if (slot->start.sampling.needs_history()) slot->history.push_back(token.id);
  }
}

absl::StatusOr<SlotTable::Slot*> SlotTable::Find(plan::SlotId id) {
  if (id.value() < 0 || id.value() >= limits_.slots) {
    return Refuse("slot {} of {}", id.value(), limits_.slots);
  }
  std::optional<Slot>& slot = slots_[static_cast<size_t>(id.value())];
  if (!slot) return Refuse("slot {} is not in use", id.value());
  return &*slot;
}

absl::Status SlotTable::End(plan::SlotId id) {
  RETURN_IF_ERROR(Find(id).status());
  slots_[static_cast<size_t>(id.value())].reset();
  return absl::OkStatus();
}

absl::Status SlotTable::Start(const plan::SlotStart& start) {
  const int32_t id = start.slot.value();
  if (id < 0 || id >= limits_.slots) return Refuse("slot {} of {}", id, limits_.slots);
  std::optional<Slot>& slot = slots_[static_cast<size_t>(id)];
  if (slot) return Refuse("slot {} is in use", id);
  if (start.prompt_tokens < 1 || start.tokens < start.prompt_tokens ||
      start.tokens > limits_.max_model_len) {
    return Refuse("slot {} starts with {} tokens, {} of them prompt, at most {} are possible", id,
                  start.tokens, start.prompt_tokens, limits_.max_model_len);
  }
  const size_t history = start.sampling.needs_history() ? static_cast<size_t>(start.tokens) : 0;
  if (start.history.size() != history) {
    return Refuse("slot {} has a history of {} tokens, expected {}", id, start.history.size(),
                  history);
  }
  for (const int32_t token : start.history) {
    if (token < 0 || token >= vocab_size_)
      return Refuse("token {} in the history of slot {}", token, id);
  }
  RETURN_IF_ERROR(CheckSampling(start.sampling));
  slot.emplace();
  slot->sequence_number = ++sequences_started_;
  slot->start = start;
  slot->history = std::move(slot->start.history);
  slot->known_tokens = start.tokens;
  for (const auto& [token, bias] : start.sampling.logit_bias) {
    slot->bias_ids.push_back(token);
    slot->bias_values.push_back(bias);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckSampling(const plan::Sampling& sampling) const {
  const float scalars[] = {sampling.temperature,
                           sampling.top_p,
                           sampling.min_p,
                           sampling.repetition_penalty,
                           sampling.presence_penalty,
                           sampling.frequency_penalty};
  if (!std::all_of(std::begin(scalars), std::end(scalars),
                   [](float v) { return std::isfinite(v); }) ||
      sampling.temperature < 0 || sampling.top_k < 0 || sampling.repetition_penalty <= 0 ||
      sampling.logprobs < -1 || sampling.logprobs > vocab_size_) {
    return Refuse("sampling parameters out of range");
  }
  for (const int32_t token : sampling.banned_ids) {
    if (token < 0 || token >= vocab_size_) return Refuse("banned token {}", token);
  }
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < 0 || token >= vocab_size_ || !std::isfinite(bias))
      return Refuse("bias {} of token {}", bias, token);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::SetBlocks(const plan::BlockDelta& delta) {
  ASSIGN_OR_RETURN(Slot* const slot, Find(delta.slot));
  const int64_t first = delta.first_index, count = std::ssize(delta.blocks);
  if (first < 0 || first > std::ssize(slot->block_table) ||
      first + count > BlocksFor(limits_.max_model_len)) {
    return Refuse("slot {}: {} blocks at index {}", delta.slot.value(), count, first);
  }
  slot->block_table.resize(static_cast<size_t>(first));
  for (const plan::BlockId block : delta.blocks) {
    if (block.value() < 0 || block.value() >= limits_.blocks) {
      return Refuse("slot {}: block {} of {}", delta.slot.value(), block.value(), limits_.blocks);
    }
    slot->block_table.push_back(block.value());
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckRows(const Slot& slot, const plan::SequenceRows& rows) const {
  const int32_t id = rows.slot.value();
  const int64_t count = std::ssize(rows.tokens);
  const int64_t end = rows.first_position + count;
  if (slot.in_step) return Refuse("slot {} has rows twice", id);
  if (count < 1 || rows.first_position < 0 || end > slot.known_tokens ||
      end > limits_.max_model_len ||
      (slot.next_position >= 0 && rows.first_position != slot.next_position)) {
    return Refuse("slot {}: {} rows at position {}, expected {} of {} tokens", id, count,
                  rows.first_position, slot.next_position, slot.known_tokens);
  }
  if (rows.sample && end != slot.known_tokens) {
    return Refuse("slot {} samples after {} of {} tokens", id, end, slot.known_tokens);
  }
  if (BlocksFor(end) > std::ssize(slot.block_table)) {
    return Refuse("slot {} has {} blocks for {} tokens", id, slot.block_table.size(), end);
  }
  for (const int32_t token : rows.tokens) {
    const bool feedback = token == plan::kTokenFromLastStep && count == 1 && slot.sampled;
    if (!feedback && (token < 0 || token >= vocab_size_))
      return Refuse("slot {}: token {}", id, token);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::AddRows(const plan::SequenceRows& rows, StepBatch& batch) {
  ASSIGN_OR_RETURN(Slot* const slot, Find(rows.slot));
  RETURN_IF_ERROR(CheckRows(*slot, rows));
  slot->in_step = true;
  const int64_t count = std::ssize(rows.tokens);
  batch.sequences.push_back({.first_row = std::ssize(batch.token_ids),
                             .row_count = count,
                             .first_position = rows.first_position,
                             .block_table = slot->block_table});
  for (const int32_t token : rows.tokens) {
    batch.token_ids.push_back(token == plan::kTokenFromLastStep ? ~rows.slot.value() : token);
  }
  slot->next_position = rows.first_position + static_cast<int32_t>(count);
  if (!rows.sample) return absl::OkStatus();
  batch.logit_rows.push_back(static_cast<int32_t>(batch.token_ids.size()) - 1);
  batch.sampling.push_back(SampleRowOf(*slot));
  batch.sequence_numbers.push_back(slot->sequence_number);
  slot->sampled = true;
  ++slot->known_tokens;
  return absl::OkStatus();
}

kernels::SampleRow SlotTable::SampleRowOf(const Slot& slot) const {
  const plan::Sampling& from = slot.start.sampling;
  kernels::SampleRow row;
  row.slot = slot.start.slot.value();
  row.temperature = from.temperature;
  row.top_k = from.top_k;
  row.top_p = from.top_p;
  row.min_p = from.min_p;
  row.repetition_penalty = from.repetition_penalty;
  row.presence_penalty = from.presence_penalty;
  row.frequency_penalty = from.frequency_penalty;
  row.seed = from.seed;
  row.candidate = slot.start.candidate;
  row.position = static_cast<uint32_t>(slot.known_tokens);
  row.logprobs = from.logprobs;
  row.bias_ids = slot.bias_ids;
  row.bias_values = slot.bias_values;
  if (slot.known_tokens - slot.start.prompt_tokens < from.min_tokens)
    row.banned_ids = from.banned_ids;
  if (from.needs_history()) {
    const auto prompt = static_cast<size_t>(slot.start.prompt_tokens);
    row.prompt_ids = std::span(slot.history).first(prompt);
    row.output_ids = std::span(slot.history).subspan(prompt);
  }
  return row;
}

}  // namespace qserve::worker::exec
