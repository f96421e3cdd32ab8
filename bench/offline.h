// Speed of engine and model in this process, without gRPC: a batch of random prompts computed and
// continued, prefill and decode measured apart. Called by qserve-bench and gpu_offline; the calling
// thread is the engine's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/memory.h"
#include "bench/profile.h"
#include "bench/statistics.h"
#include "common/clock.h"
#include "nlohmann/json.hpp"
#include "worker/comm/local_host_group.h"
#include "worker/engine/engine.h"
#include "worker/exec/executor_options.h"
#include "worker/exec/model_executor.h"
#include "worker/exec/rank.h"

namespace qserve::bench {

struct OfflineOptions {
  worker::exec::ExecutorOptions executor;  // max_num_seqs is set to `batch`
  int32_t batch = 1;
  int32_t prompt_length = 512;
  int32_t output_length = 128;
  int32_t repeat = 3;
  uint64_t seed = 1;
  bool profile = false;  // time every operation; devices that compute inside the call only
};

// One turn of the whole batch. Prefill lasts from the submission to the first token of the last
// sequence; decode from there to the last token, and only its own tokens count.
struct OfflineRun {
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int64_t decode_tokens = 0;
  int64_t early_tokens = 0;  // decoded during the prefill of others: counted nowhere
  int64_t steps = 0;
};

struct OfflineResult {
  std::vector<OfflineRun> runs;
  double load_seconds = 0;
  ProcessMemory memory;    // after the last run
  int64_t held_bytes = 0;  // weights and KV cache, which the memory is compared with
  ProfileTable profile;    // of all runs, where it was asked for
  std::vector<OpTime> loading;
  nlohmann::ordered_json model;  // what was run: architecture, formats, instruction set, memory
};

// A model that is loaded once, for batches one after another of at most
// `executor.max_num_seqs` sequences. One thread uses it.
class OfflineSession {
 public:
  // What loading returns. `backend` is another one in tests.
  static absl::StatusOr<std::unique_ptr<OfflineSession>> Load(
      const worker::exec::ExecutorOptions& executor,
      const worker::exec::BackendFactory& backend = kernels::CreateBackend);

  // The most sequences of so many tokens that the KV cache and the slots hold at once without
  // preemption; 0 if not even one.
  int32_t LargestBatch(int32_t prompt_length, int32_t output_length) const;

  // A short batch of `options.batch` sequences, for what happens at first use only.
  absl::Status WarmUp(const OfflineOptions& options);
  // One turn, with prompts that no batch before had. InvalidArgument where the batch does not fit.
  absl::StatusOr<OfflineRun> Run(const OfflineOptions& options);

  const worker::exec::Rank& rank() const { return *rank_; }
  double load_seconds() const { return load_seconds_; }

 private:
  OfflineSession(const worker::exec::ExecutorOptions& executor,
                 std::unique_ptr<worker::exec::Rank> rank, double load_seconds);
  absl::StatusOr<OfflineRun> RunBatch(const OfflineOptions& options, int32_t prompt_length,
                                      int32_t output_length);

  const SteadyClock clock_;
  const std::unique_ptr<worker::exec::Rank> rank_;
  const double load_seconds_;
  worker::comm::LocalHostGroup group_;
  worker::exec::ModelExecutor executor_;
  worker::engine::Engine engine_;
  int64_t next_prompt_ = 0;
};

// Loads the model, warms up and measures. InvalidArgument where model, memory and lengths do not
// fit together; what loading and computing return.
absl::StatusOr<OfflineResult> RunOffline(const OfflineOptions& options);

// The report: median, least and greatest of the runs, and each of them.
nlohmann::ordered_json ToJson(const OfflineOptions& options, const OfflineResult& result);
std::string ToText(const OfflineOptions& options, const OfflineResult& result);

}  // namespace qserve::bench
