// How a step is made: running sequences, preemption, admission, and the plan's lists. Engine thread
// only.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "worker/sched/scheduler.h"

namespace qserve::worker::sched {

void Scheduler::Plan(TimePoint now, plan::StepPlan& plan) {
  QSERVE_CHECK(steps_in_flight_ < kMaxInFlight);
  ExpireDeadlines(now);
  entries_.clear();
  budget_left_ = options_.max_step_tokens;
  preempted_ = false;
  PlanRunning(/*decodes=*/true);
  PlanRunning(/*decodes=*/false);
  // Blocks ran out just now: a newcomer would only be the next to be preempted.
  if (!preempted_) Admit(now);
  Emit(plan);
}

void Scheduler::PlanRunning(bool decodes) {
  // Preemption takes sequences off the end of running_, the one being looked at last.
  for (size_t i = 0; i < running_.size() && budget_left_ > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int32_t remaining = sequence.remaining();
    if (remaining == 0 || (remaining == 1) != decodes || sequence.plan_entry >= 0) continue;
    while (sequence.phase == Phase::kRunning && !PlanRows(sequence)) Preempt(*running_.back());
  }
}

// Plans as many of the sequence's tokens as budget and blocks allow; false if no block allows even
// one.
bool Scheduler::PlanRows(Sequence& sequence) {
  const int32_t remaining = sequence.remaining();
  auto count = static_cast<int32_t>(std::min<int64_t>(remaining, budget_left_));
  const int32_t needed = BlocksFor(int64_t{sequence.scheduled} + count);
  while (static_cast<int32_t>(sequence.table.size()) < needed && pool_.available() > 0) {
    sequence.table.push_back(cache_.Allocate());
  }
  const auto room = static_cast<int64_t>(sequence.table.size()) * plan::kBlockTokens;
  count = static_cast<int32_t>(std::min<int64_t>(count, room - sequence.scheduled));
  if (count == 0) return false;
  sequence.plan_entry = static_cast<int32_t>(entries_.size());
  entries_.push_back({.sequence = &sequence,
                      .count = count,
                      .sample = count == remaining,
                      .incarnation = sequence.incarnation,
                      .slot = sequence.slot});
  budget_left_ -= count;
  return true;
}

// Back to the queue, where its arrival puts it before all that came later. Its rows in this plan
// are taken back; rows in flight go on, and a token that they draw is kept.
void Scheduler::Preempt(Sequence& sequence) {
  preempted_ = true;
  ++counters_.preemptions;
  if (sequence.computed < sequence.request->prompt_tokens()) ++counters_.preemptions_in_prefill;
  if (sequence.plan_entry >= 0) {
    Entry& entry = entries_[static_cast<size_t>(sequence.plan_entry)];
    budget_left_ += entry.count;
    entry.count = 0;
    sequence.plan_entry = -1;
  }
  LeaveSlot(sequence);
  Enqueue(sequence);
}

void Scheduler::Admit(TimePoint now) {
  auto next = waiting_.begin();
  while (next != waiting_.end() && budget_left_ > 0 && !preempted_) {
    Sequence& sequence = **next;
    ++next;  // TryAdmit removes the sequence; what preemption adds comes later in the order
    // Preempted with a row in flight: its last token is not known before the next commit.
    if (sequence.samples_in_flight > 0) continue;
    // Nobody overtakes: a long prompt would wait for ever behind a stream of short ones.
    if (!TryAdmit(sequence, now)) return;
  }
}

// Blocks that are available and not needed by the known tokens of running sequences.
int64_t Scheduler::UncommittedBlocks() const {
  int64_t blocks = pool_.available();
  for (const Sequence* sequence : running_) {
    const int32_t tokens = sequence->known_tokens() + sequence->samples_in_flight;
    blocks -= std::max(0, BlocksFor(tokens) - static_cast<int32_t>(sequence->table.size()));
  }
  return blocks;
}

// How many blocks too few there are to admit a sequence whose cached prefix is in prefix_; at most
// 0 when it can be admitted. With nothing else running every request fits (CheckRequest), the
// watermark aside.
int64_t Scheduler::MissingBlocks(const Sequence& sequence) const {
  int64_t needed = BlocksFor(sequence.known_tokens()) - static_cast<int64_t>(prefix_.size());
  for (const plan::BlockId block : prefix_) needed += pool_.references(block) == 0 ? 1 : 0;
  if (!running_.empty()) needed += watermark_blocks_;
  return needed - UncommittedBlocks();
}

bool Scheduler::TryAdmit(Sequence& sequence, TimePoint now) {
  FindCachedPrefix(sequence);
  if (free_slots_.empty() || MissingBlocks(sequence) > 0) {
    if (!PreemptFor(sequence)) return false;
  }
  StartRunning(sequence, now);
  return true;
}

// Makes room for a sequence by preempting ones of strictly lower priority, if that can be enough.
bool Scheduler::PreemptFor(Sequence& sequence) {
  const int32_t priority = sequence.request->request.priority;
  int64_t could_free = 0;
  size_t victims = 0;
  for (size_t i = running_.size(); i-- > 0; ++victims) {
    const Sequence& victim = *running_[i];
    if (victim.request->request.priority >= priority) break;
    const auto held = static_cast<int32_t>(victim.table.size());
    const int32_t known = victim.known_tokens() + victim.samples_in_flight;
    could_free += std::max(0, BlocksFor(known) - held);
    for (size_t j = 0; j < victim.table.size(); ++j) {
      // Blocks of the prefix are wanted, not freed; those that victims share are not counted on.
      const bool wanted = j < prefix_.size() && prefix_[j] == victim.table[j];
      could_free += !wanted && pool_.references(victim.table[j]) == 1 ? 1 : 0;
    }
  }
  if (victims == 0) return false;
  // With nothing else running any request fits.
  if (victims < running_.size() && could_free < MissingBlocks(sequence)) return false;
  while (free_slots_.empty() || MissingBlocks(sequence) > 0) {
    if (running_.empty() || running_.back()->request->request.priority >= priority) return false;
    Preempt(*running_.back());
  }
  return true;
}

// Fills prefix_ with the cached blocks that the sequence's tokens begin with. The last known token
// is always computed again: its logits are needed.
void Scheduler::FindCachedPrefix(Sequence& sequence) {
  prefix_.clear();
  if (!UsesCache(sequence)) return;
  std::array<int32_t, plan::kBlockTokens> scratch;
  const int32_t most = (sequence.known_tokens() - 1) / plan::kBlockTokens;
  PrefixCache::Place place{
      .parent = std::nullopt, .salt = sequence.request->request.cache_salt, .hash = 0};
  for (int32_t i = 0; i < most; ++i) {
    place.hash = HashOfBlock(sequence, i);
    const auto block = cache_.Find(place, sequence.TokensOfBlock(i, scratch));
    if (!block) return;
    prefix_.push_back(*block);
    place.parent = *block;
  }
}

void Scheduler::StartRunning(Sequence& sequence, TimePoint now) {
  waiting_.erase(&sequence);
  waiting_tokens_ -= sequence.known_tokens();
  for (const plan::BlockId block : prefix_) pool_.AddReference(block);
  sequence.table = prefix_;
  sequence.blocks_cached = static_cast<int32_t>(prefix_.size());
  sequence.scheduled = sequence.blocks_cached * plan::kBlockTokens;
  sequence.computed = sequence.scheduled;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  sequence.phase = Phase::kRunning;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, ServedFirst()),
                  &sequence);
  // Decoding appends a token a step, and must not allocate for each that takes it past a power of
  // two.
  constexpr int32_t kReservedOutput = 8192;
  sequence.output.reserve(
      static_cast<size_t>(std::min(sequence.request->request.max_tokens, kReservedOutput)));
  if (!sequence.was_scheduled) {
    sequence.was_scheduled = true;
    sequence.first_scheduled = now;
  }
  RequestState& state = *sequence.request;
  if (!state.started) {
    state.started = true;
    --waiting_requests_;
    state.cached_tokens = std::min(sequence.scheduled, state.prompt_tokens());
    counters_.prompt_tokens += state.prompt_tokens();
    counters_.cached_prompt_tokens += state.cached_tokens;
  }
  QSERVE_CHECK(PlanRows(sequence));  // admission made sure of a block
}

void Scheduler::Emit(plan::StepPlan& plan) {
  std::erase_if(entries_, [](const Entry& entry) { return entry.count == 0; });
  plan.shutdown = false;
  plan.committed_step = plan::StepId(committed_step_);
  plan.committed_digest = committed_digest_;
  plan.ends.clear();
  plan.starts.clear();
  if (entries_.empty()) {
    plan.step = plan::StepId();
    plan.block_deltas.clear();
    plan.rows.clear();
    return;
  }
  plan.step = plan::StepId(next_step_);
  std::swap(plan.ends, ended_slots_);
  EmitStarts(plan);
  EmitDeltas(plan);
  EmitRows(plan);
  InFlight& record = in_flight_[static_cast<size_t>(next_step_ % kMaxInFlight)];
  std::swap(record.entries, entries_);
  record.samples = 0;
  for (const Entry& entry : record.entries) record.samples += entry.sample ? 1 : 0;
  ++steps_in_flight_;
  ++next_step_;
}

void Scheduler::EmitStarts(plan::StepPlan& plan) {
  for (const Entry& entry : entries_) {
    Sequence& sequence = *entry.sequence;
    if (sequence.slot_started) continue;
    sequence.slot_started = true;
    plan::SlotStart& start = plan.starts.emplace_back();
    start.slot = sequence.slot;
    start.candidate = static_cast<uint32_t>(sequence.candidate);
    start.prompt_tokens = sequence.request->prompt_tokens();
    start.tokens = sequence.known_tokens();
    start.sampling = sequence.request->request.sampling;
    if (!start.sampling.needs_history()) continue;
    start.history.resize(static_cast<size_t>(start.tokens));
    sequence.CopyTokens(0, start.tokens, start.history.data());
  }
}

// Each table from the first entry that changed to its end. Lists of earlier plans are written over,
// so that their memory is used again.
void Scheduler::EmitDeltas(plan::StepPlan& plan) {
  size_t count = 0;
  for (Sequence* sequence : running_) {
    if (static_cast<size_t>(sequence->blocks_sent) == sequence->table.size()) continue;
    if (count == plan.block_deltas.size()) plan.block_deltas.emplace_back();
    plan::BlockDelta& delta = plan.block_deltas[count++];
    delta.slot = sequence->slot;
    delta.first_index = sequence->blocks_sent;
    delta.blocks.assign(sequence->table.begin() + sequence->blocks_sent, sequence->table.end());
    sequence->blocks_sent = static_cast<int32_t>(sequence->table.size());
  }
  plan.block_deltas.resize(count);
}

void Scheduler::EmitRows(plan::StepPlan& plan) {
  plan.rows.resize(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    Sequence& sequence = *entry.sequence;
    plan::SequenceRows& rows = plan.rows[i];
    rows.slot = entry.slot;
    rows.first_position = sequence.scheduled;
    rows.sample = entry.sample;
    rows.tokens.resize(static_cast<size_t>(entry.count));
    if (sequence.samples_in_flight > 0) {
      // Drawn by the one step in flight, so by the step before this one.
      QSERVE_CHECK(entry.count == 1 && sequence.samples_in_flight == 1);
      QSERVE_CHECK(sequence.scheduled == sequence.known_tokens());
      rows.tokens[0] = plan::kTokenFromLastStep;
    } else {
      sequence.CopyTokens(sequence.scheduled, entry.count, rows.tokens.data());
    }
    sequence.scheduled += entry.count;
    sequence.samples_in_flight += entry.sample ? 1 : 0;
    sequence.plan_entry = -1;
    ++sequence.request->rows_in_flight;
  }
}

}  // namespace qserve::worker::sched
