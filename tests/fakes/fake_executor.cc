// Hashes instead of a model, and suspicion of every plan.
#include "tests/fakes/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "common/hashing.h"
#include "common/status_macros.h"

namespace qserve::fakes {
namespace {

using worker::plan::BlockDelta;
using worker::plan::BlockId;
using worker::plan::kBlockTokens;
using worker::plan::SampledToken;
using worker::plan::SequenceRows;
using worker::plan::SlotId;
using worker::plan::SlotStart;
using worker::plan::StepPlan;
using worker::plan::StepResult;

absl::Status Wrong(std::string what) { return absl::InternalError("plan: " + std::move(what)); }

}  // namespace

FakeExecutor::FakeExecutor(FakeExecutorOptions options)
    : options_(options),
      slots_(static_cast<size_t>(options.limits.slots)),
      cells_(static_cast<size_t>(options.limits.blocks) * kBlockTokens),
      table_uses_(static_cast<size_t>(options.limits.blocks), 0) {}

absl::Status FakeExecutor::Enqueue(const StepPlan& plan) {
  if (results_.size() >= worker::exec::kMaxStepsInFlight) {
    return absl::FailedPreconditionError("too many steps in flight");
  }
  if (plan.step.value() == options_.fail_enqueue_of_step) {
    return absl::InternalError("the step could not be enqueued, as asked");
  }
  if (plan.step.value() != last_step_ + 1) return Wrong("step ids are not consecutive");
  if (plan.rows.empty()) return Wrong("no rows");
  if (plan.token_count() > options_.limits.max_step_tokens) return Wrong("too many rows");
  last_step_ = plan.step.value();
  RETURN_IF_ERROR(ApplyTables(plan));
  StepResult result{.step = plan.step, .tokens = {}};
  FakeStep& record = steps_.emplace_back();
  record.starts = static_cast<int64_t>(plan.starts.size());
  for (const SequenceRows& rows : plan.rows) {
    RETURN_IF_ERROR(RunRows(rows, plan.step.value(), record, result));
  }
  for (SampledToken& token : result.tokens) {
    Slot& slot = slots_[static_cast<size_t>(token.slot.value())];
    slot.last_sampled = token.id;
    slot.last_sampled_step = plan.step.value();
  }
  results_.push_back(std::move(result));
  return absl::OkStatus();
}

absl::StatusOr<StepResult> FakeExecutor::Await(worker::plan::StepId step) {
  if (results_.empty() || results_.front().step != step) return Wrong("not the oldest in flight");
  if (options_.step_latency > Duration::zero()) std::this_thread::sleep_for(options_.step_latency);
  if (step.value() == options_.fail_await_of_step) {
    return absl::InternalError("the step failed, as asked");
  }
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

int64_t FakeExecutor::total_rows() const {
  int64_t rows = 0;
  for (const FakeStep& step : steps_) rows += step.rows;
  return rows;
}

void FakeExecutor::CountTable(const Slot& slot, int by) {
  for (const BlockId block : slot.table) table_uses_[static_cast<size_t>(block.value())] += by;
}

absl::StatusOr<FakeExecutor::Slot*> FakeExecutor::ActiveSlot(SlotId id) {
  if (id.value() < 0 || static_cast<size_t>(id.value()) >= slots_.size()) {
    return Wrong(fmt::format("there is no slot {}", id.value()));
  }
  Slot& slot = slots_[static_cast<size_t>(id.value())];
  if (!slot.active) return Wrong(fmt::format("slot {} has not been started", id.value()));
  return &slot;
}

absl::Status FakeExecutor::ApplyTables(const StepPlan& plan) {
  for (const SlotId id : plan.ends) {
    ASSIGN_OR_RETURN(Slot * slot, ActiveSlot(id));
    CountTable(*slot, -1);
    *slot = Slot{};
  }
  for (const SlotStart& start : plan.starts) RETURN_IF_ERROR(ApplyStart(start));
  for (const BlockDelta& delta : plan.block_deltas) RETURN_IF_ERROR(ApplyDelta(delta));
  return absl::OkStatus();
}

absl::Status FakeExecutor::ApplyStart(const SlotStart& start) {
  const auto index = static_cast<size_t>(start.slot.value());
  if (start.slot.value() < 0 || index >= slots_.size()) return Wrong("a start without a slot");
  Slot& slot = slots_[index];
  if (slot.active) return Wrong(fmt::format("slot {} is taken", index));
  const bool needs_history = start.sampling.needs_history();
  const size_t tokens = needs_history ? static_cast<size_t>(start.tokens) : 0;
  if (start.history.size() != tokens) return Wrong("the history is not the tokens");
  slot = Slot{};
  slot.active = true;
  slot.prompt_tokens = start.prompt_tokens;
  slot.candidate = start.candidate;
  slot.sampling = start.sampling;
  slot.history = start.history;
  return absl::OkStatus();
}

absl::Status FakeExecutor::ApplyDelta(const BlockDelta& delta) {
  ASSIGN_OR_RETURN(Slot * slot, ActiveSlot(delta.slot));
  const auto first = static_cast<size_t>(delta.first_index);
  if (delta.first_index < 0 || first > slot->table.size()) return Wrong("a gap in a block table");
  CountTable(*slot, -1);
  slot->table.resize(first);
  for (const BlockId block : delta.blocks) {
    if (block.value() < 0 || block.value() >= options_.limits.blocks) {
      return Wrong(fmt::format("there is no block {}", block.value()));
    }
    slot->table.push_back(block);
  }
  CountTable(*slot, 1);
  return absl::OkStatus();
}

absl::Status FakeExecutor::WriteRow(Slot& slot, int32_t token, int32_t position) {
  if (position < 0 || position >= options_.limits.max_model_len) return Wrong("position");
  const auto index = static_cast<size_t>(position / kBlockTokens);
  if (index >= slot.table.size()) {
    return Wrong(fmt::format("position {} is not covered by the block table", position));
  }
  const auto block = static_cast<size_t>(slot.table[index].value());
  if (table_uses_[block] != 1) return Wrong(fmt::format("a write to the shared block {}", block));
  cells_[block * kBlockTokens + static_cast<size_t>(position % kBlockTokens)] = {token, position};
  return absl::OkStatus();
}

absl::Status FakeExecutor::RunRows(const SequenceRows& rows, int64_t step, FakeStep& record,
                                   StepResult& result) {
  ASSIGN_OR_RETURN(Slot * slot, ActiveSlot(rows.slot));
  int32_t position = rows.first_position;
  for (int32_t token : rows.tokens) {
    if (token == worker::plan::kTokenFromLastStep) {
      if (slot->last_sampled_step != step - 1) return Wrong("the last step drew no such token");
      token = slot->last_sampled;
      ++record.from_last_step;
    }
    RETURN_IF_ERROR(WriteRow(*slot, token, position++));
  }
  const auto count = static_cast<int64_t>(rows.tokens.size());
  record.rows += count;
  record.decode_rows += count == 1 ? 1 : 0;
  if (!rows.sample) return absl::OkStatus();
  ++record.samples;
  ASSIGN_OR_RETURN(SampledToken token, Sample(*slot, position - 1));
  token.slot = rows.slot;
  result.tokens.push_back(std::move(token));
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> FakeExecutor::Sample(Slot& slot, int32_t position) {
  scratch_.clear();
  for (int32_t i = 0; i <= position; ++i) {
    const auto block =
        static_cast<size_t>(slot.table[static_cast<size_t>(i / kBlockTokens)].value());
    const Cell& cell = cells_[block * kBlockTokens + static_cast<size_t>(i % kBlockTokens)];
    if (cell.position != i) return Wrong(fmt::format("position {} was never written", i));
    scratch_.push_back(cell.token);
  }
  const bool needs_history = slot.sampling.needs_history();
  if (needs_history && slot.history != scratch_) return Wrong("the history is not what was fed");
  const uint64_t key[] = {slot.sampling.seed, slot.candidate};
  uint64_t hash =
      HashSpan(std::span<const int32_t>(scratch_), HashSpan(std::span<const uint64_t>(key)));
  const auto vocabulary = static_cast<uint64_t>(options_.vocabulary);
  const std::vector<int32_t>& banned = slot.sampling.banned_ids;
  const auto pick = [&] { return static_cast<int32_t>(hash % vocabulary); };
  if (position + 1 - slot.prompt_tokens < slot.sampling.min_tokens) {
    while (std::find(banned.begin(), banned.end(), pick()) != banned.end()) ++hash;
  }
  SampledToken token;
  token.id = pick();
  if (slot.sampling.logprobs >= 0) {
    token.logprob = -static_cast<float>(hash >> 44) * 0x1p-16f;
    for (int32_t i = 0; i < slot.sampling.logprobs; ++i) {
      token.top.push_back({.id = (token.id + i) % options_.vocabulary,
                           .logprob = token.logprob - static_cast<float>(i)});
    }
  }
  if (needs_history) slot.history.push_back(token.id);
  return token;
}

}  // namespace qserve::fakes
