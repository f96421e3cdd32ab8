// Everything that must hold between two calls of the scheduler, looked at from outside its logic.
// Tests call it after every step.
#include <fmt/format.h>

#include <algorithm>

#include "common/status_macros.h"
#include "worker/sched/scheduler.h"

namespace qserve::worker::sched {
namespace {

absl::Status Broken(std::string what) { return absl::InternalError(std::move(what)); }

}  // namespace

absl::Status Scheduler::CheckInvariants() const {
  RETURN_IF_ERROR(CheckBlocks());
  RETURN_IF_ERROR(CheckQueues());
  for (const auto& [id, state] : requests_) {
    for (const Sequence& sequence : state->sequences) RETURN_IF_ERROR(CheckSequence(sequence));
  }
  return absl::OkStatus();
}

// References are exactly those of the running sequences' tables; all else is free or idle.
absl::Status Scheduler::CheckBlocks() const {
  if (const std::string wrong = pool_.FindInconsistency(); !wrong.empty()) return Broken(wrong);
  if (const std::string wrong = cache_.FindInconsistency(); !wrong.empty()) return Broken(wrong);
  std::vector<int32_t> references(static_cast<size_t>(pool_.total()), 0);
  for (const Sequence* sequence : running_) {
    for (const plan::BlockId block : sequence->table) {
      ++references[static_cast<size_t>(block.value())];
    }
  }
  for (int32_t i = 0; i < pool_.total(); ++i) {
    if (pool_.references(plan::BlockId(i)) != references[static_cast<size_t>(i)]) {
      return Broken(fmt::format("block {} has {} references, {} tables hold it", i,
                                pool_.references(plan::BlockId(i)),
                                references[static_cast<size_t>(i)]));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckSequence(const Sequence& s) const {
  const auto broken = [&s](const char* what) {
    return Broken(fmt::format("request {} candidate {}: {}", s.request->request.id.value(),
                              s.candidate, what));
  };
  const bool running =
      std::binary_search(running_.begin(), running_.end(), &s,
                         [](const Sequence* a, const Sequence* b) { return ServedFirst()(a, b); });
  if (running != (s.phase == Phase::kRunning)) return broken("running or not?");
  // The set compares, and does not change, what it looks for.
  const bool waiting = waiting_.contains(const_cast<Sequence*>(&s));
  if (waiting != (s.phase == Phase::kWaiting)) return broken("waiting or not?");
  if (s.plan_entry != -1) return broken("left in a plan");
  if (!running) {
    if (!s.table.empty() || s.scheduled != 0 || s.slot.value() != -1) return broken("holds things");
    return absl::OkStatus();
  }
  if (s.output.size() > static_cast<size_t>(s.request->request.max_tokens)) {
    return broken("too much output");
  }
  if (s.computed > s.scheduled) return broken("computed more than scheduled");
  if (s.scheduled > s.known_tokens() + std::max(0, s.samples_in_flight)) {
    return broken("scheduled more than there is");
  }
  if (static_cast<int32_t>(s.table.size()) < BlocksFor(s.scheduled)) return broken("lacks blocks");
  if (s.samples_in_flight < 0 || s.samples_in_flight > steps_in_flight_) {
    return broken("samples in flight");
  }
  if (s.blocks_cached * plan::kBlockTokens > s.computed) return broken("cached before computed");
  if (s.slot.value() < 0) return broken("has no slot");
  return absl::OkStatus();
}

absl::Status Scheduler::CheckQueues() const {
  if (!std::is_sorted(running_.begin(), running_.end(), ServedFirst())) {
    return Broken("running sequences are out of order");
  }
  std::vector<int> slots(static_cast<size_t>(options_.slots), 0);
  for (const plan::SlotId slot : free_slots_) ++slots[static_cast<size_t>(slot.value())];
  for (const Sequence* sequence : running_) ++slots[static_cast<size_t>(sequence->slot.value())];
  if (std::any_of(slots.begin(), slots.end(), [](int uses) { return uses != 1; })) {
    return Broken("a slot is lost or used twice");
  }
  int64_t tokens = 0;
  for (const Sequence* sequence : waiting_) tokens += sequence->known_tokens();
  if (tokens != waiting_tokens_) return Broken("waiting tokens are miscounted");

  int64_t rows = 0, waiting_requests = 0;
  for (const auto& [id, state] : requests_) {
    rows += state->rows_in_flight;
    waiting_requests += state->live > 0 && !state->started ? 1 : 0;
    const auto live = std::count_if(state->sequences.begin(), state->sequences.end(),
                                    [](const Sequence& s) { return s.phase != Phase::kOver; });
    if (live != state->live) return Broken("live candidates are miscounted");
    if (live == 0 && state->rows_in_flight == 0) return Broken("an ended request is kept");
  }
  if (waiting_requests != waiting_requests_) return Broken("waiting requests are miscounted");
  for (int i = 0; i < steps_in_flight_; ++i) {
    const int64_t step = oldest_in_flight().value() + i;
    rows -=
        static_cast<int64_t>(in_flight_[static_cast<size_t>(step % kMaxInFlight)].entries.size());
  }
  if (rows != 0) return Broken("rows in flight are miscounted");
  return absl::OkStatus();
}

}  // namespace qserve::worker::sched
