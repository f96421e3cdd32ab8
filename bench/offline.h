// Speed of engine and model in this process, without gRPC: a batch of random prompts computed and
// continued, prefill and decode measured apart. Called by qserve-bench; the calling thread is the
// engine's.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/statistics.h"
#include "nlohmann/json.hpp"
#include "worker/exec/executor_options.h"

namespace qserve::bench {

struct OfflineOptions {
  worker::exec::ExecutorOptions executor;  // max_num_seqs is set to `batch`
  int32_t batch = 1;
  int32_t prompt_length = 512;
  int32_t output_length = 128;
  int32_t repeat = 3;
  uint64_t seed = 1;
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
  nlohmann::ordered_json model;  // what was run: architecture, formats, instruction set, memory
};

// Loads the model, warms up and measures. InvalidArgument where model, memory and lengths do not
// fit together; what loading and computing return.
absl::StatusOr<OfflineResult> RunOffline(const OfflineOptions& options);

// The report: median, least and greatest of the runs, and each of them.
nlohmann::ordered_json ToJson(const OfflineOptions& options, const OfflineResult& result);
std::string ToText(const OfflineOptions& options, const OfflineResult& result);

}  // namespace qserve::bench
