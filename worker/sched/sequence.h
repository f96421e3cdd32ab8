// What the scheduler knows of one request and of each of its candidates (sequences). Owned by
// Scheduler; engine thread only.
//
// The tokens of a sequence are its prompt, then its output. Positions [0, scheduled) have been put
// into plans since the sequence was last admitted, [0, computed) of them have been committed.
// Preemption sets both back to 0 and keeps the output, so that what is fed at each position never
// depends on the schedule.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "worker/plan/step_plan.h"
#include "worker/sched/prefix_cache.h"
#include "worker/sched/request.h"

namespace qserve::worker::sched {

struct RequestState;

enum class Phase {
  kParked,   // waits for a sibling to compute the prompt that they share
  kWaiting,  // in the queue: new, or preempted
  kRunning,  // has a slot
  kOver,
};

struct Sequence {
  RequestState* request = nullptr;
  int32_t candidate = 0;
  Phase phase = Phase::kParked;
  std::vector<int32_t> output;

  int32_t scheduled = 0;
  int32_t computed = 0;
  int32_t samples_in_flight = 0;  // tokens that follow `output`, drawn by steps not yet committed
  uint32_t incarnation = 0;  // how often it left its slot: tells rows of before from rows of now

  plan::SlotId slot{-1};
  bool slot_started = false;  // a plan has told the executor
  std::vector<plan::BlockId> table;
  int32_t blocks_sent = 0;       // entries of `table` that the executor knows
  int32_t blocks_cached = 0;     // leading entries of `table` that the prefix cache knows
  bool cache_closed = false;     // a hash collision: no further block can enter the cache
  std::vector<uint64_t> hashes;  // chain hashes of its full blocks, as far as they were asked for
  int32_t plan_entry = -1;       // its rows in the plan being made

  bool was_scheduled = false;
  TimePoint first_scheduled{};
  TimePoint first_token = kNever;

  int32_t known_tokens() const;
  // Tokens that could be fed next, those that the last step is drawing included.
  int32_t remaining() const;
  // Tokens [first, first + count), all of them known.
  void CopyTokens(int32_t first, int32_t count, int32_t* out) const;
  // The tokens of a full block; `scratch` holds them if they lie across the prompt's end.
  BlockTokens TokensOfBlock(int32_t index, std::array<int32_t, plan::kBlockTokens>& scratch) const;
};

struct RequestState {
  Request request;
  int64_t arrival_order = 0;
  std::vector<Sequence> sequences;  // one per candidate; never resized
  int32_t live = 0;                 // sequences not over
  int32_t rows_in_flight = 0;       // entries of plans not yet committed
  int32_t cached_tokens = 0;
  bool started = false;        // a candidate has been scheduled
  bool prompt_shared = false;  // candidates need not wait for one another (any more)

  int32_t prompt_tokens() const { return static_cast<int32_t>(request.prompt.size()); }
};

// Who is served first: higher priority, then earlier arrival, then lower candidate.
struct ServedFirst {
  bool operator()(const Sequence* a, const Sequence* b) const {
    const RequestState& x = *a->request;
    const RequestState& y = *b->request;
    if (x.request.priority != y.request.priority) return x.request.priority > y.request.priority;
    if (x.arrival_order != y.arrival_order) return x.arrival_order < y.arrival_order;
    return a->candidate < b->candidate;
  }
};

inline int32_t BlocksFor(int64_t tokens) {
  return static_cast<int32_t>((tokens + plan::kBlockTokens - 1) / plan::kBlockTokens);
}

}  // namespace qserve::worker::sched
