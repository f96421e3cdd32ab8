#include "worker/exec/model_executor.h"

#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/exec/step_key.h"
#include "worker/model/device_status.h"

namespace qserve::worker::exec {
namespace {

// A leader commits a step before it plans the one after the next: more are never asked for.
constexpr size_t kRememberedSteps = 2 * kMaxStepsInFlight;

// How long a begun step is left alone when nobody waits for it and no plan comes: afterwards it is
// waited for, so that its failure becomes known.
constexpr auto kPatience = std::chrono::milliseconds(10);

size_t DepthOf(Rank& rank) {
  const bool ahead = rank.backend().info().asynchronous && !rank.communicator().WaitsForDevice();
  return ahead ? kMaxStepsInFlight : 1;
}

}  // namespace

ModelExecutor::ModelExecutor(Rank& rank, std::function<void()> on_failure)
    : rank_(rank),
      on_failure_(std::move(on_failure)),
      depth_(DepthOf(rank)),
      slots_(rank.limits(), static_cast<int32_t>(rank.description().config.vocab_size)),
      thread_([this] { Loop(); }) {}

ModelExecutor::~ModelExecutor() {
  bool abandoned = false;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    abandoned = busy_ || !waiting_.empty();
    waiting_.clear();
  }
  changed_.notify_all();
  if (abandoned) rank_.communicator().Abort();  // the other ranks may never come
  thread_.join();
}

absl::Status ModelExecutor::Enqueue(const plan::StepPlan& plan) {
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(failure_);
    if (in_flight_.size() >= kMaxStepsInFlight) {
      return absl::FailedPreconditionError(
          fmt::format("{} steps are in flight", kMaxStepsInFlight));
    }
    in_flight_.push_back(plan.step);
    waiting_.push_back(plan);
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<plan::StepResult> ModelExecutor::Await(plan::StepId step) {
  std::unique_lock lock(mutex_);
  if (in_flight_.empty() || in_flight_.front() != step) {
    RETURN_IF_ERROR(failure_);
    return absl::FailedPreconditionError(
        fmt::format("step {} is not the oldest in flight", step.value()));
  }
  awaiting_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !finished_.empty() || !failure_.ok(); });
  awaiting_ = false;
  if (finished_.empty()) return failure_;
  plan::StepResult result = std::move(finished_.front());
  finished_.pop_front();
  in_flight_.pop_front();
  return result;
}

// What the executor's thread does next; waits until there is something.
ModelExecutor::Move ModelExecutor::NextMove(std::unique_lock<std::mutex>& lock) {
  if (!begun_.empty() && begun_.size() == depth_) return Move::kFinish;
  const auto stirs = [this] { return closed_ || !waiting_.empty() || awaiting_; };
  if (begun_.empty()) {
    changed_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
  } else {
    changed_.wait_for(lock, kPatience, stirs);
  }
  if (closed_) return Move::kLeave;
  if (waiting_.empty() || (!begun_.empty() && MustFinishFirst(waiting_.front()))) {
    return Move::kFinish;
  }
  return Move::kBegin;
}

// True if the plan's inputs depend on the tokens of a step that has not been read.
bool ModelExecutor::MustFinishFirst(const plan::StepPlan& next) const {
  return begun_.back().step == next.committed_step || slots_.NeedsResults(next);
}

absl::Status ModelExecutor::TakeProcessor() {
  const std::optional<int> processor = rank_.processor();
  if (!processor) return absl::OkStatus();
  return model::ToAbsl(rank_.backend().BindThread(0, *processor));
}

void ModelExecutor::Loop() {
  absl::Status status = TakeProcessor();
  bool finished_well = true;
  std::unique_lock lock(mutex_);
  while (status.ok()) {
    const Move move = NextMove(lock);
    if (move == Move::kLeave) break;
    plan::StepPlan plan;
    if (move == Move::kBegin) {
      plan = std::move(waiting_.front());
      waiting_.pop_front();
    }
    busy_ = true;
    lock.unlock();
    if (move == Move::kBegin) {
      status = Begin(plan);
    } else if (absl::StatusOr<plan::StepResult> result = FinishOldest(); result.ok()) {
      Publish(*std::move(result));
    } else {
      status = result.status();
      finished_well = false;
    }
    lock.lock();
    busy_ = !begun_.empty();
  }
  lock.unlock();
  if (!status.ok()) {
    // Other ranks may be in the middle of the step, and this device in a collective that they never
    // come to: it is waited for only when nothing can hold it up any more.
    rank_.communicator().Abort();
    if (on_failure_) on_failure_();
  }
  FinishAll(finished_well);  // what the device still writes to
  if (status.ok()) return;
  lock.lock();
  failure_ = status;
  waiting_.clear();
  busy_ = false;
  changed_.notify_all();
}

// The steps before one that could not begin are good, unless the abort has ended their collectives:
// whoever awaits them gets them. Those behind one that failed are waited for and forgotten.
void ModelExecutor::FinishAll(bool publish) {
  while (!begun_.empty()) {
    if (!publish) {
      static_cast<void>(rank_.backend().Finish());
      begun_.pop_front();
      continue;
    }
    absl::StatusOr<plan::StepResult> result = FinishOldest();
    publish = result.ok();
    if (publish) Publish(*std::move(result));
  }
}

void ModelExecutor::Publish(plan::StepResult result) {
  {
    const std::lock_guard lock(mutex_);
    finished_.push_back(std::move(result));
    awaiting_ = false;  // whoever waited has what it waits for
  }
  changed_.notify_all();
}

absl::Status ModelExecutor::Begin(const plan::StepPlan& plan) {
  if (last_step_ && plan.step <= *last_step_) {
    return absl::InvalidArgumentError(
        fmt::format("plan: step {} after step {}", plan.step.value(), last_step_->value()));
  }
  RETURN_IF_ERROR(CheckCommitted(plan));
  ASSIGN_OR_RETURN(StepBatch batch, slots_.Apply(plan));
  begun_.push_back({.step = plan.step, .batch = std::move(batch), .sampled = {}, .ids = {}});
  Begun& step = begun_.back();
  const bool reads_ids = rank_.rank() != 0 && !step.batch.sampling.empty();
  if (reads_ids) step.ids.resize(static_cast<size_t>(limits().slots));
  const kernels::Status status =
      rank_.backend().Begin(StepKey(step.batch, rank_.recorded_rows()), [&] {
        rank_.model().Forward({.token_ids = step.batch.token_ids,
                               .sequences = step.batch.sequences,
                               .logit_rows = step.batch.logit_rows,
                               .sampling = step.batch.sampling},
                              rank_.kv_cache().layers(), &step.sampled);
        if (!reads_ids) return;
        rank_.backend().ReadAtFinish(step.ids.data(), rank_.model().sampled_ids(),
                                     std::ssize(step.ids) * int64_t{sizeof(int32_t)});
      });
  if (!status.ok()) {
    begun_.pop_back();
    return model::ToAbsl(status);
  }
  last_step_ = plan.step;
  return absl::OkStatus();
}

absl::StatusOr<plan::StepResult> ModelExecutor::FinishOldest() {
  const absl::Status status = model::ToAbsl(rank_.backend().Finish());
  const Begun begun = std::move(begun_.front());
  begun_.pop_front();
  RETURN_IF_ERROR(status);
  plan::StepResult result = ResultOf(begun);
  slots_.Record(begun.batch, result);
  drawn_.push_back({begun.step, plan::DigestTokens(result)});
  if (drawn_.size() > kRememberedSteps) drawn_.pop_front();
  return result;
}

// The leader tells with every plan which tokens it went on from. A rank that computed others must
// not go on.
absl::Status ModelExecutor::CheckCommitted(const plan::StepPlan& plan) const {
  for (const Drawn& drawn : drawn_) {
    if (drawn.step != plan.committed_step) continue;
    if (drawn.digest == plan.committed_digest) return absl::OkStatus();
    return absl::DataLossError(
        fmt::format("rank {} drew other tokens in step {} than the leader committed", rank_.rank(),
                    drawn.step.value()));
  }
  // A group that has not committed yet names a step from before its first.
  if (drawn_.empty() || plan.committed_step < drawn_.front().step) return absl::OkStatus();
  return absl::DataLossError(fmt::format("step {} is committed, but rank {} did not run it",
                                         plan.committed_step.value(), rank_.rank()));
}

plan::StepResult ModelExecutor::ResultOf(const Begun& begun) const {
  plan::StepResult result{.step = begun.step, .tokens = {}};
  if (rank_.rank() == 0) {
    for (const kernels::SampledToken& from : begun.sampled) {
      plan::SampledToken& to = result.tokens.emplace_back();
      to.slot = plan::SlotId(from.slot);
      to.id = from.id;
      to.logprob = from.logprob;
      for (const kernels::TokenLogprob& top : from.top) to.top.push_back({top.id, top.logprob});
    }
    QSERVE_CHECK(result.tokens.size() == begun.batch.sampling.size());
    return result;
  }
  for (const kernels::SampleRow& row : begun.batch.sampling) {
    plan::SampledToken& to = result.tokens.emplace_back();
    to.slot = plan::SlotId(row.slot);
    to.id = begun.ids[static_cast<size_t>(row.slot)];
  }
  return result;
}

}  // namespace qserve::worker::exec
