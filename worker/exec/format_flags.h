// Flags that qserve-worker and qserve-bench have alike: in which formats a model is held. Declared
// once here, read once, in each one's main.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/cli/options.h"
#include "worker/exec/executor_options.h"

namespace qserve::worker::exec {

// As given on the command line.
struct FormatFlags {
  std::string kv_cache_memory = "auto";
  std::string kv_cache_dtype = "auto";
  std::string lm_head_dtype = "auto";
  std::string quantize = "none";
  std::string full_precision_dtype = "fp32";
};

void Declare(cli::Options& options, FormatFlags& flags);

// What they mean, for the device that `options` names already. InvalidArgument names the flag.
absl::Status Apply(const FormatFlags& flags, ExecutorOptions& options);

}  // namespace qserve::worker::exec
