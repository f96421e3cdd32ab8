// Flags of qserve-worker, as users of serving engines know them, and what they mean to each part.
// Read once, in main.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/cli/options.h"
#include "common/clock.h"
#include "worker/engine/engine.h"
#include "worker/exec/executor_options.h"
#include "worker/exec/format_flags.h"

namespace qserve::worker {

struct Flags {
  std::string model;
  std::string served_model_name;
  std::string device = "auto";
  std::string tensor_parallel = "1";  // --tensor-parallel-size: a number or auto
  int tensor_parallel_size = 1;       // what that means, once resolved
  std::string numa_directory;         // --numa-directory
  int nodes = 1;
  int node_rank = 0;
  std::string rendezvous;
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9091";
  int32_t max_model_len = 0;
  int32_t max_num_seqs = 256;
  int64_t max_num_batched_tokens = 2048;
  int32_t max_queue = 1024;
  exec::FormatFlags formats;
  bool no_prefix_caching = false;
  bool no_cuda_graphs = false;
  int threads = 0;
  bool pin_threads = false;
  std::string cpu_isa = "auto";
  std::optional<uint64_t> seed;
  double drain_timeout = 30;
  std::string log_level = "info";
  std::string log_format = "text";
};

void Declare(cli::Options& options, Flags& flags);

// Turns --tensor-parallel-size into a number. auto: the largest degree that cuts the model (read
// from its directory) and does not exceed the NUMA nodes this process may run on. In a rank's
// process the degree is `group_size`, which the supervisor decided; 0 in the supervisor.
absl::Status ResolveDegree(Flags& flags, int group_size);
// Whether ranks are bound to NUMA nodes.
bool BindsRanks(const Flags& flags);

// Checks everything that can be checked without the model; InvalidArgument names the flag.
absl::Status Validate(const Flags& flags);

// Of the rank `rank`; `flags` must be valid.
absl::StatusOr<exec::ExecutorOptions> ExecutorOptionsOf(const Flags& flags, int rank);
engine::EngineOptions EngineOptionsOf(const Flags& flags);

// The name clients use: --served-model-name, or the model directory's own.
std::string ServedName(const Flags& flags);

// Where rank `rank` serves its metrics: the port counts up by rank. Empty: nowhere.
std::string MetricsAddress(const Flags& flags, int rank);

Duration DrainTimeout(const Flags& flags);

}  // namespace qserve::worker
