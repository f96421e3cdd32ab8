// The engine: one thread that drains the inbox, plans a step, tells the followers, runs it and
// hands out its tokens (RunOnce is the heart). Everything about scheduling is in worker/sched,
// everything about the device behind StepExecutor.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/comm/host_group.h"
#include "worker/engine/request.h"
#include "worker/exec/step_executor.h"

namespace qserve::worker::engine {

struct EngineOptions {
  int64_t max_batched_tokens = 2048;  // token budget of a step
  int32_t max_queue = 1024;           // requests waiting or submitted; more are refused
  bool prefix_caching = true;
  int32_t pipeline_depth = 2;  // steps enqueued before the oldest is awaited; 1 or 2
};

// A snapshot; counters only grow.
struct EngineStats {
  int64_t running = 0;        // sequences
  int64_t waiting = 0;        // requests not yet started
  int64_t queued_tokens = 0;  // prompt tokens not yet computed, waiting requests included
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_used = 0;    // held by sequences
  int64_t kv_blocks_cached = 0;  // free, but holding a reusable prefix
  int64_t steps = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t preemptions_in_prefill = 0;  // of those, before the prompt was computed
  int64_t requests_finished = 0;
  int64_t rows_dropped = 0;  // computed for sequences that turned out to have ended
  TimePoint last_step{};     // when the last step was committed
  bool healthy = true;       // false once a step failed
  bool draining = false;
};

class Engine {
 public:
  // `group` is the leader's side of the host group (size 1 without followers). All references must
  // outlive the engine.
  Engine(EngineOptions options, exec::StepExecutor& executor, comm::HostGroup& group,
         const Clock& clock);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. ResourceExhausted when the queue is full, Unavailable when draining, stopped or
  // failed; InvalidArgument for a request that can never run (more blocks than there are).
  absl::Status Submit(EngineRequest request);

  // The one door for everything exceptional: client gone, deadline, stop string, drain, abort.
  // candidate -1: all. Any thread; a request that is already over is ignored. The last event of
  // each candidate has `reason`.
  void Cancel(RequestId id, int32_t candidate = -1, FinishReason reason = FinishReason::kCancelled);

  // A request id that was not used before. Any thread.
  RequestId NextRequestId();

  EngineStats Stats() const;  // any thread

  // Runs until Stop() or a failed step; on failure every open request ends with Unavailable and the
  // status is returned. Called on the engine's own thread. Followers are told to leave on a regular
  // stop.
  absl::Status Run();
  // One turn of Run, without waiting for work: for tests and simulation. True if there was anything
  // to do.
  absl::StatusOr<bool> RunOnce();

  void StartDraining();  // refuse new requests, finish the others. Any thread.
  bool Idle() const;     // nothing submitted, waiting or running. Any thread.
  void Stop();           // ends Run soon; open requests end as cancelled. Any thread.

  // Internal, naming what is wrong with the scheduler's books. For tests, on the thread that runs.
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qserve::worker::engine
