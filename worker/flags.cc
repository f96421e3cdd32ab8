#include "worker/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/checkpoint/model_config.h"
#include "worker/group/numa.h"
#include "worker/model/sharding.h"

namespace qserve::worker {
namespace {

absl::Status AtLeast(const char* flag, int64_t value, int64_t least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("--{} must be at least {}, got {}", flag, least, value));
}

absl::Status ValidateGroup(const Flags& flags) {
  RETURN_IF_ERROR(AtLeast("tensor-parallel-size", flags.tensor_parallel_size, 1));
  RETURN_IF_ERROR(AtLeast("nodes", flags.nodes, 1));
  if (flags.node_rank < 0 || flags.node_rank >= flags.nodes) {
    return absl::InvalidArgumentError(
        fmt::format("--node-rank must be in [0, {}), got {}", flags.nodes, flags.node_rank));
  }
  if (flags.tensor_parallel_size % flags.nodes != 0) {
    return absl::InvalidArgumentError(
        fmt::format("--tensor-parallel-size ({}) must be a multiple of --nodes ({})",
                    flags.tensor_parallel_size, flags.nodes));
  }
  if (flags.nodes > 1 && !cli::ParseHostPort(flags.rendezvous, nullptr)) {
    return absl::InvalidArgumentError("--rendezvous HOST:PORT is required with --nodes");
  }
  return absl::OkStatus();
}

// Said here for the whole host, before ranks are started; each checks its own share again.
absl::Status ValidatePinning(const Flags& flags) {
  const int64_t ranks = flags.tensor_parallel_size / flags.nodes;
  const int64_t threads = ranks * std::max(flags.threads, 1);
  const auto cpus = std::ssize(group::AllowedCpus());
  if (!flags.pin_threads || threads <= cpus) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "--pin-threads gives each thread a processor, and there are {} for {} threads ({} of each "
      "rank): take fewer --threads",
      cpus, threads, std::max(flags.threads, 1)));
}

// The largest degree that cuts the model and leaves no rank without a NUMA node.
absl::StatusOr<int> DegreeOfMachine(const Flags& flags) {
  if (flags.device != "cpu") {
    return absl::InvalidArgumentError(
        "--tensor-parallel-size auto counts NUMA nodes: it needs --device cpu");
  }
  if (flags.nodes > 1) {
    return absl::InvalidArgumentError(
        "--tensor-parallel-size auto is for one host; with --nodes give a number");
  }
  ASSIGN_OR_RETURN(const std::vector<group::NumaNode> nodes,
                   group::ReadNumaNodes(flags.numa_directory, group::AllowedCpus()));
  ASSIGN_OR_RETURN(const checkpoint::ModelConfig config, checkpoint::ReadModelConfig(flags.model));
  int degree = 1;
  for (const int legal : model::LegalDegrees(config)) {
    if (legal <= std::ssize(nodes)) degree = std::max(degree, legal);
  }
  LOG_INFO("tensor-parallel-size auto: {} (NUMA nodes to run on: {})", degree, nodes.size());
  return degree;
}

}  // namespace

bool BindsRanks(const Flags& flags) { return flags.tensor_parallel == "auto"; }

absl::Status ResolveDegree(Flags& flags, int group_size) {
  if (group_size > 0) {
    flags.tensor_parallel_size = group_size;
    return absl::OkStatus();
  }
  if (flags.tensor_parallel == "auto") {
    ASSIGN_OR_RETURN(flags.tensor_parallel_size, DegreeOfMachine(flags));
    return absl::OkStatus();
  }
  const char* end = flags.tensor_parallel.data() + flags.tensor_parallel.size();
  const auto [stop, error] =
      std::from_chars(flags.tensor_parallel.data(), end, flags.tensor_parallel_size);
  if (error == std::errc() && stop == end) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "--tensor-parallel-size must be a number or auto, got '{}'", flags.tensor_parallel));
}

void Declare(cli::Options& options, Flags& flags) {
  options.Add("model", flags.model, "Model directory (Hugging Face layout)")->required();
  options.Add("served-model-name", flags.served_model_name,
              "Name in requests; default: the directory's");
  options.Add("device", flags.device, "auto, cpu or cuda");
  options.Add("tensor-parallel-size", flags.tensor_parallel,
              "Ranks that share the model; auto (CPUs only): one a NUMA node, bound to it");
  flags.numa_directory = group::kNumaDirectory;
  options.Add("numa-directory", flags.numa_directory, "Where auto finds the NUMA nodes");
  options.Add("nodes", flags.nodes, "Hosts that the ranks are spread over");
  options.Add("node-rank", flags.node_rank, "This host's number, 0 to nodes - 1");
  options.Add(
      "rendezvous", flags.rendezvous,
      "HOST:PORT on node 0 where the nodes meet (QSERVE_RENDEZVOUS_SECRET must be set alike)");
  options.Add("listen", flags.listen, "Address to serve gRPC on");
  options.Add("metrics-listen", flags.metrics_listen,
              "Address of rank 0's Prometheus metrics, rank r: port + r; empty: none");
  options.Add("max-model-len", flags.max_model_len,
              "Positions a sequence may have; 0: what the model was made for");
  options.Add("max-num-seqs", flags.max_num_seqs, "Sequences in a step");
  options.Add("max-num-batched-tokens", flags.max_num_batched_tokens, "Tokens in a step");
  options.Add("max-queue", flags.max_queue, "Requests that may wait; more are refused");
  exec::Declare(options, flags.formats);
  options.AddFlag("no-prefix-caching", flags.no_prefix_caching, "Compute every prompt anew");
  options.AddFlag("no-cuda-graphs", flags.no_cuda_graphs,
                  "Launch decoding steps kernel by kernel, not as CUDA graphs; CPUs have none");
  options.Add("threads", flags.threads,
              "CPU threads of a rank; 0: its cores / the ranks that share them");
  options.AddFlag("pin-threads", flags.pin_threads,
                  "Bind each CPU thread to a processor of its own");
  options.Add("cpu-isa", flags.cpu_isa, "auto, reference, avx2, avxvnni, avx512vnni or avx512amx");
  options.Add("seed", flags.seed, "Seed of requests without one; default: drawn for each request")
      ->check(CLI::NonNegativeNumber);
  options.Add("drain-timeout", flags.drain_timeout, "Seconds that open requests get after SIGTERM")
      ->check(CLI::NonNegativeNumber);
  options.Add("log-level", flags.log_level, "debug, info, warn or error");
  options.Add("log-format", flags.log_format, "text or json");
}

absl::Status Validate(const Flags& flags) {
  if (!std::filesystem::is_directory(flags.model)) {
    return absl::NotFoundError(fmt::format("--model: {} is not a directory", flags.model));
  }
  RETURN_IF_ERROR(ValidateGroup(flags));
  if (!cli::ParseHostPort(flags.listen, nullptr)) {
    return absl::InvalidArgumentError(
        fmt::format("--listen must be HOST:PORT, got '{}'", flags.listen));
  }
  if (!flags.metrics_listen.empty() && !cli::ParseHostPort(flags.metrics_listen, nullptr)) {
    return absl::InvalidArgumentError(
        fmt::format("--metrics-listen must be HOST:PORT, got '{}'", flags.metrics_listen));
  }
  RETURN_IF_ERROR(AtLeast("max-model-len", flags.max_model_len, 0));
  RETURN_IF_ERROR(AtLeast("max-num-seqs", flags.max_num_seqs, 1));
  RETURN_IF_ERROR(AtLeast("max-num-batched-tokens", flags.max_num_batched_tokens, 1));
  RETURN_IF_ERROR(AtLeast("max-queue", flags.max_queue, 1));
  RETURN_IF_ERROR(AtLeast("threads", flags.threads, 0));
  RETURN_IF_ERROR(ValidatePinning(flags));
  return ExecutorOptionsOf(flags, 0).status();
}

absl::StatusOr<exec::ExecutorOptions> ExecutorOptionsOf(const Flags& flags, int rank) {
  exec::ExecutorOptions options;
  options.model_dir = flags.model;
  options.device = flags.device;
  options.device_ordinal = rank % (flags.tensor_parallel_size / flags.nodes);
  options.threads = flags.threads;
  options.cpu_isa = flags.cpu_isa;
  options.rank = rank;
  options.tensor_parallel_size = flags.tensor_parallel_size;
  options.max_model_len = flags.max_model_len;
  options.max_num_seqs = flags.max_num_seqs;
  options.max_num_batched_tokens = flags.max_num_batched_tokens;
  options.record_steps = !flags.no_cuda_graphs;
  RETURN_IF_ERROR(exec::Apply(flags.formats, options));
  return options;
}

engine::EngineOptions EngineOptionsOf(const Flags& flags) {
  return {.max_batched_tokens = flags.max_num_batched_tokens,
          .max_queue = flags.max_queue,
          .prefix_caching = !flags.no_prefix_caching};
}

std::string ServedName(const Flags& flags) {
  if (!flags.served_model_name.empty()) return flags.served_model_name;
  const std::filesystem::path path = std::filesystem::absolute(flags.model).lexically_normal();
  return path.has_filename() ? path.filename() : path.parent_path().filename();
}

std::string MetricsAddress(const Flags& flags, int rank) {
  if (flags.metrics_listen.empty()) return "";
  const size_t colon = flags.metrics_listen.rfind(':');
  const int port = cli::ParseHostPort(flags.metrics_listen, nullptr).value_or(0);
  return fmt::format("{}:{}", flags.metrics_listen.substr(0, colon), port == 0 ? 0 : port + rank);
}

Duration DrainTimeout(const Flags& flags) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(flags.drain_timeout));
}

}  // namespace qserve::worker
