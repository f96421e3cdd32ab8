// The life of requests and sequences: how they come in, change phase and end. Planning is in
// scheduler_plan.cc, commit in scheduler_commit.cc. Engine thread only.
#include "worker/sched/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"

namespace qserve::worker::sched {
namespace {

bool AnyNegative(const std::vector<int32_t>& ids) {
  return std::any_of(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
}

absl::Status CheckResume(const Request& request) {
  if (request.resume.empty()) return absl::OkStatus();
  if (request.resume.size() != static_cast<size_t>(request.candidates)) {
    return absl::InvalidArgumentError("resume must name every candidate");
  }
  bool all_finished = true;
  for (const ResumeCandidate& candidate : request.resume) {
    if (candidate.output_ids.size() > static_cast<size_t>(request.max_tokens)) {
      return absl::InvalidArgumentError("resume has more tokens than max_tokens");
    }
    if (AnyNegative(candidate.output_ids)) {
      return absl::InvalidArgumentError("a resumed token is negative");
    }
    all_finished = all_finished && candidate.finished;
  }
  if (all_finished) return absl::InvalidArgumentError("every resumed candidate is finished");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const SchedulerOptions& options, const Request& request) {
  if (request.prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (AnyNegative(request.prompt)) return absl::InvalidArgumentError("a prompt token is negative");
  if (request.max_tokens < 1) return absl::InvalidArgumentError("max_tokens must be at least 1");
  if (request.candidates < 1) return absl::InvalidArgumentError("at least one candidate is needed");
  const int64_t length = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  if (length > options.max_model_len) {
    return absl::InvalidArgumentError(
        fmt::format("prompt of {} tokens and max_tokens {} exceed the model length {}",
                    request.prompt.size(), request.max_tokens, options.max_model_len));
  }
  // The last token is drawn, but never fed.
  if (BlocksFor(length - 1) > options.blocks) {
    return absl::InvalidArgumentError(fmt::format(
        "prompt of {} tokens and max_tokens {} need {} KV blocks, there are {}",
        request.prompt.size(), request.max_tokens, BlocksFor(length - 1), options.blocks));
  }
  return CheckResume(request);
}

Scheduler::Scheduler(SchedulerOptions options)
    : options_(options),
      watermark_blocks_(std::max(1, (options.blocks + 99) / 100)),
      pool_(options.blocks),
      cache_(pool_) {
  QSERVE_CHECK(options.slots > 0 && options.blocks > 0 && options.max_step_tokens > 0);
  for (int32_t i = options.slots - 1; i >= 0; --i) free_slots_.push_back(plan::SlotId(i));
}

absl::Status Scheduler::Submit(Request request, TimePoint now) {
  RETURN_IF_ERROR(CheckRequest(options_, request));
  const RequestId id = request.id;
  if (requests_.contains(id)) return absl::AlreadyExistsError("this request id is in use");
  RequestState& state = *requests_.emplace(id, std::make_unique<RequestState>()).first->second;
  state.request = std::move(request);
  Request& r = state.request;
  state.arrival_order = next_arrival_++;
  ++waiting_requests_;
  if (r.deadline != kNever) deadlines_.emplace(r.deadline, id);
  if (r.queue_deadline != kNever) deadlines_.emplace(r.queue_deadline, id);
  const bool shares = options_.prefix_caching && r.use_prefix_cache && r.candidates > 1 &&
                      state.prompt_tokens() > plan::kBlockTokens;
  state.prompt_shared = !shares;

  state.sequences.resize(static_cast<size_t>(r.candidates));
  state.live = r.candidates;
  for (size_t i = 0; i < state.sequences.size(); ++i) {
    Sequence& sequence = state.sequences[i];
    sequence.request = &state;
    sequence.candidate = static_cast<int32_t>(i);
    if (!r.resume.empty()) sequence.output = std::move(r.resume[i].output_ids);
  }
  for (Sequence& sequence : state.sequences) {
    if (!r.resume.empty() && r.resume[static_cast<size_t>(sequence.candidate)].finished) {
      sequence.phase = Phase::kOver;
      --state.live;
    }
  }
  for (Sequence& sequence : state.sequences) {
    if (sequence.phase == Phase::kOver || sequence.output.empty()) continue;
    // The other replica drew the last token and died before it could say that it was the last.
    const auto stop = std::find(r.stop_ids.begin(), r.stop_ids.end(), sequence.output.back());
    if (stop != r.stop_ids.end()) {
      Finish(sequence, FinishReason::kStop, now);
      events_.back().matched_stop_id = *stop;
    } else if (sequence.output.size() == static_cast<size_t>(r.max_tokens)) {
      Finish(sequence, FinishReason::kLength, now);
    }
  }
  Unpark(state);
  EraseRetired();
  return absl::OkStatus();
}

void Scheduler::Cancel(RequestId id, int32_t candidate, FinishReason reason, TimePoint now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  for (Sequence& sequence : found->second->sequences) {
    if (sequence.phase == Phase::kOver) continue;
    if (candidate < 0 || sequence.candidate == candidate) Finish(sequence, reason, now);
  }
  EraseRetired();
}

void Scheduler::CancelAll(FinishReason reason, TimePoint now) {
  std::vector<std::pair<int64_t, RequestId>> ids;  // in order of arrival, for reproducible events
  for (const auto& [id, state] : requests_) ids.emplace_back(state->arrival_order, id);
  std::sort(ids.begin(), ids.end());
  for (const auto& [order, id] : ids) Cancel(id, -1, reason, now);
}

void Scheduler::TakeEvents(std::vector<TokenEvent>& events) {
  events.clear();
  std::swap(events, events_);
}

void Scheduler::Enqueue(Sequence& sequence) {
  sequence.phase = Phase::kWaiting;
  waiting_.insert(&sequence);
  waiting_tokens_ += sequence.known_tokens();
}

// Lets those candidates into the queue that need not wait for a sibling: all once the shared prompt
// has been computed, before that only the first one that is not over.
void Scheduler::Unpark(RequestState& state) {
  for (Sequence& sequence : state.sequences) {
    if (sequence.phase == Phase::kOver) continue;
    if (sequence.phase == Phase::kParked) Enqueue(sequence);
    if (!state.prompt_shared) return;
  }
}

// With `event` the end is told in that one, which has not been delivered yet; else in one of its
// own.
void Scheduler::Finish(Sequence& sequence, FinishReason reason, TimePoint now, TokenEvent* event) {
  RequestState& state = *sequence.request;
  if (sequence.phase == Phase::kRunning) LeaveSlot(sequence);
  if (sequence.phase == Phase::kWaiting) {
    waiting_.erase(&sequence);
    waiting_tokens_ -= sequence.known_tokens();
  }
  sequence.phase = Phase::kOver;
  if (event == nullptr) {
    event = &events_.emplace_back();
    event->request = state.request.id;
    event->candidate = sequence.candidate;
  }
  event->finish = reason;
  FillUsage(sequence, now, event->usage);
  if (--state.live == 0) {
    if (!state.started) --waiting_requests_;
    ++counters_.requests_finished;
    deadlines_.erase({state.request.deadline, state.request.id});
    deadlines_.erase({state.request.queue_deadline, state.request.id});
    retired_.push_back(state.request.id);
  } else {
    Unpark(state);
  }
}

void Scheduler::FillUsage(const Sequence& sequence, TimePoint now, Usage& usage) {
  const RequestState& state = *sequence.request;
  const TimePoint arrival = state.request.arrival;
  usage.prompt_tokens = state.prompt_tokens();
  usage.cached_tokens = state.cached_tokens;
  usage.queue_time = (sequence.was_scheduled ? sequence.first_scheduled : now) - arrival;
  if (sequence.first_token != kNever) usage.time_to_first_token = sequence.first_token - arrival;
}

// Gives back the slot and the blocks of a running sequence, children before parents.
void Scheduler::LeaveSlot(Sequence& sequence) {
  const auto place = std::lower_bound(running_.begin(), running_.end(), &sequence, ServedFirst());
  QSERVE_CHECK(place != running_.end() && *place == &sequence);
  running_.erase(place);
  if (sequence.slot_started) ended_slots_.push_back(sequence.slot);
  free_slots_.push_back(sequence.slot);
  sequence.slot = plan::SlotId(-1);
  sequence.slot_started = false;
  for (size_t i = sequence.table.size(); i-- > 0;) pool_.DropReference(sequence.table[i]);
  sequence.table.clear();
  sequence.blocks_sent = 0;
  sequence.blocks_cached = 0;
  sequence.cache_closed = false;
  sequence.scheduled = 0;
  sequence.computed = 0;
  ++sequence.incarnation;
}

// Requests stay until their last row in flight has been committed: entries point to their
// sequences.
void Scheduler::EraseRetired() {
  std::erase_if(retired_, [this](RequestId id) {
    const auto found = requests_.find(id);
    if (found->second->rows_in_flight > 0) return false;
    requests_.erase(found);
    return true;
  });
}

void Scheduler::ExpireDeadlines(TimePoint now) {
  auto next = deadlines_.begin();
  while (next != deadlines_.end() && std::get<0>(*next) <= now) {
    const RequestId id = std::get<1>(*next);
    next = deadlines_.erase(next);
    RequestState& state = *requests_.at(id);
    if (state.request.deadline > now && state.started) continue;  // it was the queue's deadline
    Cancel(id, -1, FinishReason::kDeadline, now);
    next = deadlines_.begin();  // Cancel may have erased the one that was next
  }
}

bool Scheduler::UsesCache(const Sequence& sequence) const {
  return options_.prefix_caching && sequence.request->request.use_prefix_cache;
}

uint64_t Scheduler::HashOfBlock(Sequence& sequence, int32_t index) {
  std::array<int32_t, plan::kBlockTokens> scratch;
  std::vector<uint64_t>& hashes = sequence.hashes;
  while (static_cast<int32_t>(hashes.size()) <= index) {
    const uint64_t parent =
        hashes.empty() ? cache_.RootHash(sequence.request->request.cache_salt) : hashes.back();
    const auto next = static_cast<int32_t>(hashes.size());
    hashes.push_back(cache_.ChainHash(parent, sequence.TokensOfBlock(next, scratch)));
  }
  return hashes[static_cast<size_t>(index)];
}

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats = counters_;
  stats.running = static_cast<int64_t>(running_.size());
  stats.waiting = waiting_requests_;
  stats.queued_tokens = waiting_tokens_;
  for (const Sequence* sequence : running_) {
    stats.queued_tokens += std::max(0, sequence->known_tokens() - sequence->scheduled);
  }
  stats.blocks_cached = pool_.idle();
  stats.blocks_used = pool_.total() - pool_.available();
  return stats;
}

}  // namespace qserve::worker::sched
