// A scheduler that does what a test tells it: turns requests into plans for a StepExecutor under a
// given schedule and collects what was drawn. Blocks are never shared between sequences unless the
// schedule says so. Test programs only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "worker/comm/host_group.h"
#include "worker/exec/model_executor.h"
#include "worker/exec/step_executor.h"
#include "worker/plan/step_plan.h"

namespace qserve::tests {

namespace exec = worker::exec;
namespace plan = worker::plan;

struct Request {
  std::vector<int32_t> prompt;
  plan::Sampling sampling;
  int32_t max_tokens = 8;
  uint32_t candidate = 0;
};

struct Schedule {
  int64_t budget = 1 << 20;      // tokens of a step; at most the executor's
  size_t concurrency = 1 << 20;  // sequences at a time
  bool pipelined = false;        // the next step is enqueued before the last one is read
  // Steps before which every running sequence is put out and begins anew (not with pipelined).
  std::set<int> preempt_before;
  // The second and later requests reuse this many blocks of the first one's prompt, which they must
  // share.
  int32_t shared_blocks = 0;
};

using Drawn = std::vector<plan::SampledToken>;

class Driver {
 public:
  Driver(exec::StepExecutor& executor, const Schedule& schedule)
      : executor_(executor), schedule_(schedule) {
    budget_ = std::min(schedule.budget, executor.limits().max_step_tokens);
  }

  // The tokens of every request, in their order.
  absl::StatusOr<std::vector<Drawn>> Run(const std::vector<Request>& requests) {
    sequences_.clear();
    for (const Request& request : requests)
      sequences_.push_back({.request = &request, .tokens = request.prompt});
    while (!AllDone()) {
      plan::StepPlan next = Plan();
      if (next.rows.empty() && next.ends.empty()) {
        RETURN_IF_ERROR(AwaitOldest());
        continue;
      }
      in_flight_.push_back(next);
      RETURN_IF_ERROR(executor_.Enqueue(next));
      const size_t depth = schedule_.pipelined ? exec::kMaxStepsInFlight : 1;
      if (in_flight_.size() >= depth) RETURN_IF_ERROR(AwaitOldest());
    }
    while (!in_flight_.empty()) RETURN_IF_ERROR(AwaitOldest());
    std::vector<Drawn> drawn;
    for (const Sequence& sequence : sequences_) drawn.push_back(sequence.drawn);
    return drawn;
  }

  int preemptions_in_prefill() const { return preemptions_in_prefill_; }
  int preemptions_in_decode() const { return preemptions_in_decode_; }
  int most_sequences() const { return most_sequences_; }

  // What the next plans say of the tokens committed before them; a test may lie.
  uint64_t digest_error = 0;

 private:
  struct Sequence {
    const Request* request = nullptr;
    std::vector<int32_t> tokens;  // known to this side
    Drawn drawn;
    std::optional<int32_t> slot;
    std::vector<plan::BlockId> blocks;
    int32_t planned = 0;  // positions given to steps
    int32_t pending = 0;  // tokens drawn by steps in flight
    bool ended = false;

    int32_t known() const { return static_cast<int32_t>(tokens.size()) + pending; }
    int32_t limit() const {
      return static_cast<int32_t>(request->prompt.size()) + request->max_tokens;
    }
    bool complete() const { return known() >= limit(); }
  };

  bool AllDone() const {
    return std::all_of(sequences_.begin(), sequences_.end(),
                       [](const Sequence& s) { return s.ended; });
  }

  plan::StepPlan Plan() {
    plan::StepPlan next;
    ++steps_;
    next.step = plan::StepId(steps_);
    next.committed_step = committed_step_;
    next.committed_digest = committed_digest_ ^ digest_error;
    if (schedule_.preempt_before.contains(steps_)) PreemptAll(next);
    for (Sequence& sequence : sequences_) {
      if (sequence.slot && sequence.complete() && sequence.pending == 0) End(sequence, next);
    }
    int64_t left = budget_;
    for (Sequence& sequence : sequences_) {
      if (sequence.ended || left == 0 || sequence.complete()) continue;
      if (!sequence.slot && !Admit(sequence, next)) continue;
      left -= AddRows(sequence, left, next);
    }
    most_sequences_ = std::max(most_sequences_, static_cast<int>(next.rows.size()));
    return next;
  }

  void End(Sequence& sequence, plan::StepPlan& next) {
    next.ends.emplace_back(*sequence.slot);
    used_slots_.erase(*sequence.slot);
    sequence.slot.reset();
    sequence.ended = true;
  }

  void PreemptAll(plan::StepPlan& next) {
    for (Sequence& sequence : sequences_) {
      if (!sequence.slot || sequence.complete()) continue;
      const bool in_prefill =
          sequence.planned < static_cast<int32_t>(sequence.request->prompt.size());
      ++(in_prefill ? preemptions_in_prefill_ : preemptions_in_decode_);
      End(sequence, next);
      sequence.ended = false;
    }
  }

  bool Admit(Sequence& sequence, plan::StepPlan& next) {
    if (used_slots_.size() >= schedule_.concurrency) return false;
    int32_t slot = 0;
    while (used_slots_.contains(slot)) ++slot;
    const auto count =
        static_cast<int32_t>((sequence.limit() + plan::kBlockTokens - 1) / plan::kBlockTokens);
    if (slot >= executor_.limits().slots) return false;
    used_slots_.insert(slot);
    sequence.slot = slot;
    const int32_t shared = &sequence == &sequences_.front() ? 0 : schedule_.shared_blocks;
    TakeBlocks(sequence, count, shared);
    sequence.planned = shared * plan::kBlockTokens;
    plan::SlotStart start;
    start.slot = plan::SlotId(slot);
    start.candidate = sequence.request->candidate;
    start.prompt_tokens = static_cast<int32_t>(sequence.request->prompt.size());
    start.tokens = static_cast<int32_t>(sequence.tokens.size());
    start.sampling = sequence.request->sampling;
    if (start.sampling.needs_history()) start.history = sequence.tokens;
    next.starts.push_back(start);
    next.block_deltas.push_back({.slot = start.slot, .first_index = 0, .blocks = sequence.blocks});
    return true;
  }

  // Blocks come from one end of the pool, a new region each time, backwards: neighbours in a
  // sequence are not neighbours in memory.
  void TakeBlocks(Sequence& sequence, int32_t count, int32_t shared) {
    sequence.blocks.assign(sequences_.front().blocks.begin(),
                           sequences_.front().blocks.begin() + shared);
    for (int32_t i = shared; i < count; ++i) {
      sequence.blocks.emplace_back(executor_.limits().blocks - 1 - next_block_);
      next_block_ = (next_block_ + 1) % executor_.limits().blocks;
    }
  }

  int64_t AddRows(Sequence& sequence, int64_t left, plan::StepPlan& next) {
    plan::SequenceRows rows;
    rows.slot = plan::SlotId(*sequence.slot);
    rows.first_position = sequence.planned;
    const auto literals = static_cast<int64_t>(sequence.tokens.size()) - sequence.planned;
    if (literals > 0) {
      const auto from = sequence.tokens.begin() + sequence.planned;
      rows.tokens.assign(from, from + std::min(left, literals));
    } else {
      rows.tokens = {plan::kTokenFromLastStep};
    }
    const auto count = static_cast<int32_t>(rows.tokens.size());
    sequence.planned += count;
    rows.sample = sequence.planned == sequence.known();
    if (rows.sample) ++sequence.pending;
    next.rows.push_back(std::move(rows));
    return count;
  }

  absl::Status AwaitOldest() {
    const plan::StepPlan oldest = std::move(in_flight_.front());
    in_flight_.pop_front();
    ASSIGN_OR_RETURN(const plan::StepResult result, executor_.Await(oldest.step));
    committed_step_ = oldest.step;
    committed_digest_ = plan::DigestTokens(result);
    for (const plan::SampledToken& token : result.tokens) {
      const auto owner = std::find_if(sequences_.begin(), sequences_.end(), [&](const Sequence& s) {
        return s.slot == token.slot.value();
      });
      if (owner == sequences_.end()) return absl::InternalError("a token of nobody");
      owner->tokens.push_back(token.id);
      owner->drawn.push_back(token);
      owner->drawn.back().slot = plan::SlotId();  // where it ran is no part of the outcome
      --owner->pending;
    }
    return absl::OkStatus();
  }

  exec::StepExecutor& executor_;
  const Schedule schedule_;
  int64_t budget_ = 0;
  std::vector<Sequence> sequences_;
  std::set<int32_t> used_slots_;
  std::deque<plan::StepPlan> in_flight_;
  plan::StepId committed_step_;
  uint64_t committed_digest_ = 0;
  int steps_ = 0;
  int32_t next_block_ = 0;
  int preemptions_in_prefill_ = 0;
  int preemptions_in_decode_ = 0;
  int most_sequences_ = 0;
};

// What `requests` draw from a rank that is alone; nothing for each if a step fails.
inline std::vector<Drawn> Draw(exec::Rank& rank, const Schedule& schedule,
                               const std::vector<Request>& requests) {
  exec::ModelExecutor executor(rank);
  Driver driver(executor, schedule);
  auto drawn = driver.Run(requests);
  EXPECT_TRUE(drawn.ok()) << drawn.status();
  return drawn.ok() ? *std::move(drawn) : std::vector<Drawn>(requests.size());
}

// The leader's side of a group: plans go out before they run here.
class BroadcastingExecutor final : public exec::StepExecutor {
 public:
  BroadcastingExecutor(exec::StepExecutor& executor, worker::comm::HostGroup& group)
      : executor_(executor), group_(group) {}
  const exec::ExecutorLimits& limits() const override { return executor_.limits(); }
  absl::Status Enqueue(const plan::StepPlan& step) override {
    RETURN_IF_ERROR(group_.Broadcast(plan::Encode(step)));
    return executor_.Enqueue(step);
  }
  absl::StatusOr<plan::StepResult> Await(plan::StepId step) override {
    return executor_.Await(step);
  }

 private:
  exec::StepExecutor& executor_;
  worker::comm::HostGroup& group_;
};

}  // namespace qserve::tests
