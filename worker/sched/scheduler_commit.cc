// What follows from a step's tokens: blocks enter the prefix cache, sequences grow and end. Engine
// thread only.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/sched/scheduler.h"

namespace qserve::worker::sched {

absl::Status Scheduler::CheckResult(const plan::StepResult& result) const {
  if (steps_in_flight_ == 0 || result.step != oldest_in_flight()) {
    return absl::InternalError(fmt::format(
        "a result for step {}, which is not the oldest in flight", result.step.value()));
  }
  const auto index = static_cast<size_t>(result.step.value() % kMaxInFlight);
  const InFlight& record = in_flight_[index];
  if (result.tokens.size() != record.samples) {
    return absl::InternalError(fmt::format("step {} has {} tokens, {} were to be drawn",
                                           result.step.value(), result.tokens.size(),
                                           record.samples));
  }
  size_t next = 0;
  for (const Entry& entry : record.entries) {
    if (!entry.sample) continue;
    const plan::SampledToken& token = result.tokens[next++];
    if (token.slot != entry.slot || token.id < 0) {
      return absl::InternalError(fmt::format("step {}: token {} of slot {} instead of slot {}",
                                             result.step.value(), token.id, token.slot.value(),
                                             entry.slot.value()));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Commit(plan::StepResult result, TimePoint now) {
  RETURN_IF_ERROR(CheckResult(result));
  committed_step_ = result.step.value();
  committed_digest_ = plan::DigestTokens(result);
  ++counters_.steps;
  --steps_in_flight_;
  size_t next = 0;
  const auto index = static_cast<size_t>(result.step.value() % kMaxInFlight);
  for (const Entry& entry : in_flight_[index].entries) {
    CommitEntry(entry, entry.sample ? &result.tokens[next++] : nullptr, now);
  }
  in_flight_[index].entries.clear();
  EraseRetired();
  return absl::OkStatus();
}

void Scheduler::CommitEntry(const Entry& entry, plan::SampledToken* token, TimePoint now) {
  Sequence& sequence = *entry.sequence;
  RequestState& state = *sequence.request;
  --state.rows_in_flight;
  if (token != nullptr) --sequence.samples_in_flight;
  if (sequence.phase == Phase::kOver) {
    counters_.rows_dropped += entry.count;
    return;
  }
  // Preempted in the meantime: the blocks are no longer its own, but the token is what it would
  // draw again.
  if (entry.incarnation == sequence.incarnation) {
    sequence.computed += entry.count;
    EnterCache(sequence);
    if (!state.prompt_shared && sequence.computed >= (state.prompt_tokens() - 1) /
                                                         plan::kBlockTokens * plan::kBlockTokens) {
      state.prompt_shared = true;
      Unpark(state);
    }
  }
  if (token != nullptr) AppendToken(sequence, std::move(*token), now);
}

// Enters the blocks that have become full. All their tokens are committed ones, so a row that is
// dropped later is never among them. A block that another sequence entered first takes the place of
// ours: both hold the same bits.
void Scheduler::EnterCache(Sequence& sequence) {
  if (!UsesCache(sequence) || sequence.cache_closed) return;
  std::array<int32_t, plan::kBlockTokens> scratch;
  while ((sequence.blocks_cached + 1) * plan::kBlockTokens <= sequence.computed) {
    const int32_t index = sequence.blocks_cached;
    PrefixCache::Place place{.parent = std::nullopt,
                             .salt = sequence.request->request.cache_salt,
                             .hash = HashOfBlock(sequence, index)};
    if (index > 0) place.parent = sequence.table[static_cast<size_t>(index - 1)];
    plan::BlockId& block = sequence.table[static_cast<size_t>(index)];
    const auto entered = cache_.Insert(place, sequence.TokensOfBlock(index, scratch), block);
    if (!entered) {
      sequence.cache_closed = true;
      return;
    }
    if (*entered != block) {
      block = *entered;
      sequence.blocks_sent = std::min(sequence.blocks_sent, index);
    }
    ++sequence.blocks_cached;
  }
}

void Scheduler::AppendToken(Sequence& sequence, plan::SampledToken token, TimePoint now) {
  const Request& request = sequence.request->request;
  const int32_t id = token.id;
  sequence.output.push_back(id);
  if (sequence.phase == Phase::kWaiting) ++waiting_tokens_;
  if (sequence.first_token == kNever) sequence.first_token = now;
  ++counters_.generated_tokens;
  TokenEvent& event = events_.emplace_back();
  event.request = request.id;
  event.candidate = sequence.candidate;
  event.token = std::move(token);
  FillUsage(sequence, now, event.usage);
  if (std::find(request.stop_ids.begin(), request.stop_ids.end(), id) != request.stop_ids.end()) {
    event.matched_stop_id = id;
    Finish(sequence, FinishReason::kStop, now, &event);
  } else if (sequence.output.size() == static_cast<size_t>(request.max_tokens)) {
    Finish(sequence, FinishReason::kLength, now, &event);
  }
}

}  // namespace qserve::worker::sched
