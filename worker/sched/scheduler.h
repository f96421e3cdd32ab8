// Decides what each step does: which sequences, which of their tokens, in which blocks. Pure: time
// comes in as an argument, nothing is read, written or waited for. Used by the engine, on its
// thread.
//
// One token budget per step. Running sequences come first, those with one token to feed before
// those with a chunk of prompt, then sequences from the queue; each group by priority, then
// arrival. When blocks run out the sequence served last gives up its blocks and is recomputed later
// from its prompt and output. Steps may be planned while one is in flight: a token that has not
// been read yet is kTokenFromLastStep, and rows of a sequence that turns out to have ended are
// dropped at commit.
//
// What is fed at a position depends on the request alone, never on what was planned when. That, and
// kernels whose rows do not depend on their company, is what makes output independent of the
// schedule.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "worker/plan/step_plan.h"
#include "worker/sched/block_pool.h"
#include "worker/sched/prefix_cache.h"
#include "worker/sched/request.h"
#include "worker/sched/sequence.h"

namespace qserve::worker::sched {

struct SchedulerOptions {
  int32_t slots = 0;
  int32_t blocks = 0;
  int64_t max_step_tokens = 0;  // the budget
  int32_t max_model_len = 0;    // positions of a sequence
  bool prefix_caching = true;
};

// OK if a replica with these options could run the request with nothing else to do; else
// InvalidArgument. Pure; any thread.
absl::Status CheckRequest(const SchedulerOptions& options, const Request& request);

// Gauges of now and counters of ever.
struct SchedulerStats {
  int64_t running = 0;        // sequences
  int64_t waiting = 0;        // requests no candidate of which has been scheduled
  int64_t queued_tokens = 0;  // known tokens not yet scheduled, of waiting and running sequences
  int64_t blocks_used = 0;
  int64_t blocks_cached = 0;  // not held, but with a reusable prefix
  int64_t steps = 0;          // committed
  int64_t prompt_tokens = 0;  // of requests that have started
  int64_t cached_prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t preemptions_in_prefill = 0;  // of those, before the prompt was computed
  int64_t requests_finished = 0;
  int64_t rows_dropped = 0;  // computed for sequences that had ended
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // InvalidArgument as CheckRequest, AlreadyExists for an id in use. Resumed candidates that are
  // complete already (but not said to be finished) end at once.
  absl::Status Submit(Request request, TimePoint now);

  // Ends a candidate (-1: all of them) wherever it is. Unknown and ended ones are ignored.
  void Cancel(RequestId id, int32_t candidate, FinishReason reason, TimePoint now);
  void CancelAll(FinishReason reason, TimePoint now);

  // Fills in the next step; `plan` may be one of earlier, whose memory is used again. plan.empty()
  // when there is nothing to do now. Precondition: fewer than kMaxInFlight steps are in flight. A
  // plan that is not empty must be run.
  static constexpr int kMaxInFlight = 2;
  void Plan(TimePoint now, plan::StepPlan& plan);

  // Takes the tokens of the oldest step in flight. Internal if they are not its tokens.
  absl::Status Commit(plan::StepResult result, TimePoint now);

  // Moves what has happened since the last call to `events` (cleared first).
  void TakeEvents(std::vector<TokenEvent>& events);

  int steps_in_flight() const { return steps_in_flight_; }
  plan::StepId oldest_in_flight() const { return plan::StepId(next_step_ - steps_in_flight_); }
  bool idle() const { return requests_.empty(); }  // no request open, no row in flight
  SchedulerStats Stats() const;

  // Internal, naming what is wrong. Looks at everything: for tests.
  absl::Status CheckInvariants() const;

 private:
  // Rows of one sequence in a plan.
  struct Entry {
    Sequence* sequence = nullptr;
    int32_t count = 0;  // 0: taken back
    bool sample = false;
    uint32_t incarnation = 0;
    plan::SlotId slot;
  };
  struct InFlight {
    std::vector<Entry> entries;
    size_t samples = 0;
  };

  // Lifecycle (scheduler.cc).
  void Enqueue(Sequence& sequence);
  void Unpark(RequestState& state);
  void Finish(Sequence& sequence, FinishReason reason, TimePoint now, TokenEvent* event = nullptr);
  static void FillUsage(const Sequence& sequence, TimePoint now, Usage& usage);
  void LeaveSlot(Sequence& sequence);
  void EraseRetired();
  void ExpireDeadlines(TimePoint now);
  bool UsesCache(const Sequence& sequence) const;
  uint64_t HashOfBlock(Sequence& sequence, int32_t index);

  // Planning (scheduler_plan.cc).
  void PlanRunning(bool decodes);
  bool PlanRows(Sequence& sequence);
  void Preempt(Sequence& sequence);
  void Admit(TimePoint now);
  bool TryAdmit(Sequence& sequence, TimePoint now);
  void StartRunning(Sequence& sequence, TimePoint now);
  void FindCachedPrefix(Sequence& sequence);
  int64_t UncommittedBlocks() const;
  int64_t MissingBlocks(const Sequence& sequence) const;
  bool PreemptFor(Sequence& sequence);
  void Emit(plan::StepPlan& plan);
  void EmitStarts(plan::StepPlan& plan);
  void EmitDeltas(plan::StepPlan& plan);
  void EmitRows(plan::StepPlan& plan);

  // Commit (scheduler_commit.cc).
  absl::Status CheckResult(const plan::StepResult& result) const;
  void CommitEntry(const Entry& entry, plan::SampledToken* token, TimePoint now);
  void EnterCache(Sequence& sequence);
  void AppendToken(Sequence& sequence, plan::SampledToken token, TimePoint now);

  // Parts of CheckInvariants (scheduler_check.cc).
  absl::Status CheckBlocks() const;
  absl::Status CheckSequence(const Sequence& sequence) const;
  absl::Status CheckQueues() const;

  const SchedulerOptions options_;
  const int32_t watermark_blocks_;  // kept available at admission, against thrashing
  BlockPool pool_;
  PrefixCache cache_;

  absl::flat_hash_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::vector<Sequence*> running_;            // in ServedFirst order
  std::set<Sequence*, ServedFirst> waiting_;  // those in phase kWaiting
  std::set<std::tuple<TimePoint, RequestId>> deadlines_;
  std::vector<plan::SlotId> free_slots_;
  std::vector<plan::SlotId> ended_slots_;  // to be said in the next plan
  std::vector<RequestId> retired_;         // requests with no live candidate
  std::vector<TokenEvent> events_;
  int64_t next_arrival_ = 0;
  int64_t waiting_requests_ = 0;
  int64_t waiting_tokens_ = 0;  // known tokens of sequences in waiting_

  std::array<InFlight, kMaxInFlight> in_flight_;  // by step modulo kMaxInFlight
  int steps_in_flight_ = 0;
  int64_t next_step_ = 1;
  int64_t committed_step_ = 0;
  uint64_t committed_digest_ = 0;

  // Of the plan being made.
  std::vector<Entry> entries_;
  std::vector<plan::BlockId> prefix_;  // found by FindCachedPrefix
  int64_t budget_left_ = 0;
  bool preempted_ = false;

  SchedulerStats counters_;
};

}  // namespace qserve::worker::sched
