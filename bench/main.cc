// qserve-bench: measurements of whole systems. `offline` runs engine and model in this process,
// `serve` loads a router or replica, `make-model` writes a random checkpoint of a known shape.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <string_view>
#include <thread>

#include "bench/load.h"
#include "bench/load_report.h"
#include "bench/machine.h"
#include "bench/make_model.h"
#include "bench/model_shapes.h"
#include "bench/offline.h"
#include "client/connection.h"
#include "client/terminal_text.h"
#include "common/cli/options.h"
#include "common/cli/version.h"
#include "common/log.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "worker/exec/format_flags.h"
#include "worker/group/numa.h"

namespace qserve::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kExitInterrupted = 130;
constexpr int kMaxLength = 1 << 20;
constexpr std::string_view kUsage =
    "Usage: qserve-bench COMMAND [OPTIONS]\n"
    "\n"
    "Commands:\n"
    "  offline      tokens per second of a model in this process, prefill and decode apart\n"
    "  serve        latencies and throughput of a router or replica under load\n"
    "  make-model   write a random checkpoint of a known shape\n"
    "\n"
    "qserve-bench COMMAND --help lists a command's options.\n";

// What Ctrl-C does: ends the process, unless a command can end well by itself.
struct Signals {
  client::Interrupt calls;
  std::atomic<bool> interrupted = false;
  std::atomic<bool> ends_well = false;
};

std::vector<const char*> WholeCommand(int argc, const char* const* argv) {
  std::vector<const char*> words = {"qserve-bench"};
  words.insert(words.end(), argv, argv + argc);
  return words;
}

// The run's circumstances first, then `results`.
void Print(int argc, const char* const* argv, const Json& results, const std::string& text,
           bool as_json) {
  if (!as_json) {
    std::cout << text << std::flush;
    return;
  }
  const std::vector<const char*> words = WholeCommand(argc, argv);
  Json json = DescribeRun(static_cast<int>(words.size()), words.data());
  json.update(results);
  constexpr auto kReplace = nlohmann::json::error_handler_t::replace;
  std::cout << json.dump(2, ' ', false, kReplace) << std::endl;
}

struct OfflineFlags {
  OfflineOptions offline;
  worker::exec::FormatFlags formats;
  bool pin_threads = false;
  bool json = false;
};

void Declare(cli::Options& options, OfflineFlags& flags) {
  options.Add("model", flags.offline.executor.model_dir, "Model directory")->required();
  options.Add("batch", flags.offline.batch, "Sequences")->check(CLI::Range(1, 4096));
  options.Add("prompt-length", flags.offline.prompt_length, "Tokens of each prompt")
      ->check(CLI::Range(1, kMaxLength));
  options.Add("output-length", flags.offline.output_length, "Tokens generated for each")
      ->check(CLI::Range(1, kMaxLength));
  options.Add("repeat", flags.offline.repeat, "Runs measured")->check(CLI::Range(1, 1000));
  options.Add("seed", flags.offline.seed, "Of the prompts");
  options.Add("device", flags.offline.executor.device, "auto, cpu or cuda");
  options.Add("threads", flags.offline.executor.threads, "CPU threads; 0: all cores")
      ->check(CLI::Range(0, 4096));
  options.Add("cpu-isa", flags.offline.executor.cpu_isa,
              "auto, reference, avx2, avxvnni, avx512vnni or avx512amx");
  options.Add("max-num-batched-tokens", flags.offline.executor.max_num_batched_tokens,
              "Tokens in a step");
  worker::exec::Declare(options, flags.formats);
  options.AddFlag("pin-threads", flags.pin_threads,
                  "Bind each CPU thread to a processor of its own");
  options.AddFlag("profile", flags.offline.profile,
                  "Time every operation, and what decoding takes beyond them (CPU)");
  options.AddFlag("json", flags.json, "Report as JSON");
}

absl::Status Resolve(OfflineFlags& flags) {
  worker::exec::ExecutorOptions& executor = flags.offline.executor;
  RETURN_IF_ERROR(worker::exec::Apply(flags.formats, executor));
  if (executor.threads == 0)
    executor.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  if (flags.pin_threads) {
    executor.processors = worker::group::AllowedCpus();
    if (executor.threads > std::ssize(executor.processors)) {
      return absl::InvalidArgumentError(fmt::format(
          "--pin-threads gives each thread a processor, and there are {} for {} threads",
          executor.processors.size(), executor.threads));
    }
  }
  return InitLogging("bench", "warn", "text");
}

int Offline(int argc, const char* const* argv, Signals&) {
  OfflineFlags flags;
  cli::Options options("qserve-bench offline",
                       "Tokens per second of a model in this process, prefill and decode apart");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  absl::Status status = Resolve(flags);
  if (status.ok()) {
    const auto result = RunOffline(flags.offline);
    status = result.status();
    if (status.ok())
      Print(argc, argv, ToJson(flags.offline, *result), ToText(flags.offline, *result), flags.json);
  }
  if (status.ok()) return EXIT_SUCCESS;
  std::cerr << "qserve-bench: " << client::OneLine(std::string(status.message())) << std::endl;
  return EXIT_FAILURE;
}

struct ServeFlags {
  LoadOptions load;
  std::string address = "127.0.0.1:50050";
  std::optional<int32_t> concurrency;
  bool json = false;
};

void Declare(cli::Options& options, ServeFlags& flags) {
  options.Add("address", flags.address, "Router or replica, HOST:PORT");
  options.Add("model", flags.load.model, "Model's name; default: the only one served");
  options.Add("requests", flags.load.requests, "Requests in all")->check(CLI::Range(1, 10'000'000));
  options
      .Add("concurrency", flags.concurrency,
           "Closed loop: that many requests at a time (default 8); with --rate: at most that "
           "many (default 1024)")
      ->check(CLI::Range(1, 16384));
  options.Add("rate", flags.load.rate, "Open loop: requests a second, at random (Poisson)")
      ->check(CLI::Range(0.0, 1e6));
  options.Add("prompt-length", flags.load.prompt_length, "Tokens of each prompt")
      ->check(CLI::Range(1, kMaxLength));
  options.Add("output-length", flags.load.output_length, "Tokens generated for each")
      ->check(CLI::Range(1, kMaxLength));
  options.Add("timeout", flags.load.timeout_seconds, "Seconds that a request may take")
      ->check(CLI::Range(0.001, 1e6));
  options.Add("seed", flags.load.seed, "Of prompts and arrivals");
  options.AddFlag("json", flags.json, "Report as JSON");
}

absl::StatusOr<LoadReport> RunServe(ServeFlags& flags, Signals& signals) {
  ASSIGN_OR_RETURN(const auto connection, client::Connection::Create(flags.address, signals.calls));
  ASSIGN_OR_RETURN(const v1::Model model,
                   connection->FindModel(flags.load.model, std::chrono::seconds(10)));
  if (model.vocab_size() < 1) return absl::InternalError("the model has no vocabulary");
  flags.load.model = model.name();
  flags.load.vocabulary = model.vocab_size();
  flags.load.concurrency = flags.concurrency.value_or(flags.load.rate > 0 ? 1024 : 8);
  return Evaluate(RunLoad(*connection, flags.load), flags.load.prompt_length);
}

int Serve(int argc, const char* const* argv, Signals& signals) {
  ServeFlags flags;
  cli::Options options("qserve-bench serve",
                       "Latencies and throughput of a router or replica under load");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  signals.ends_well = true;
  const auto report = RunServe(flags, signals);
  if (!report.ok()) {
    std::cerr << "qserve-bench: " << report.status().message() << std::endl;
    return signals.interrupted ? kExitInterrupted : EXIT_FAILURE;
  }
  Json json = ToJson(flags.load, *report);
  json["address"] = flags.address;
  Print(argc, argv, json, ToText(flags.load, *report), flags.json);
  if (signals.interrupted) return kExitInterrupted;
  return report->errors.empty() ? EXIT_SUCCESS : EXIT_FAILURE;
}

struct MakeModelFlags {
  std::string shape, output, scheme = "g128";
  MakeModelOptions options;
};

void Declare(cli::Options& options, MakeModelFlags& flags) {
  std::string shapes;
  for (const std::string& name : ShapeNames()) shapes += (shapes.empty() ? "" : ", ") + name;
  options.Add("shape", flags.shape, fmt::format("One of {}", shapes))->required();
  options.Add("output", flags.output, "Directory to write; must not exist or be empty")->required();
  options.Add("scheme", flags.scheme, "g128, gchn or float (bf16)")
      ->check(CLI::IsMember({"g128", "gchn", "float"}));
  options.Add("seed", flags.options.seed, "Of the weights");
  options.Add("threads", flags.options.threads, "Threads to use")->check(CLI::Range(1, 1024));
}

int Make(int argc, const char* const* argv, Signals& signals) {
  MakeModelFlags flags;
  flags.options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  cli::Options options("qserve-bench make-model", "Writes a random checkpoint of a known shape");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  using worker::checkpoint::Scheme;
  flags.options.scheme = flags.scheme == "float"  ? Scheme::kFloat
                         : flags.scheme == "gchn" ? Scheme::kQoqPerChannel
                                                  : Scheme::kQoqGroup128;
  flags.options.interrupted = &signals.interrupted;
  signals.ends_well = true;
  const absl::Status status = MakeModel(flags.shape, flags.output, flags.options);
  if (status.ok()) {
    std::cerr << fmt::format("wrote {}\n", flags.output);
    return EXIT_SUCCESS;
  }
  std::cerr << "qserve-bench: " << client::OneLine(std::string(status.message())) << std::endl;
  return signals.interrupted ? kExitInterrupted : EXIT_FAILURE;
}

int Main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "--version") {
    std::cout << cli::kVersion << '\n';
    return EXIT_SUCCESS;
  }
  if (command == "--help" || command == "-h" || command == "help") {
    std::cout << kUsage;
    return EXIT_SUCCESS;
  }
  Signals signals;
  const ShutdownSignal watcher([&signals](int count) {
    signals.interrupted = true;
    signals.calls.Trip();
    if (!signals.ends_well || count > 1) std::_Exit(kExitInterrupted);
  });
  if (command == "offline") return Offline(argc - 1, argv + 1, signals);
  if (command == "serve") return Serve(argc - 1, argv + 1, signals);
  if (command == "make-model") return Make(argc - 1, argv + 1, signals);
  std::cerr << kUsage;
  return EXIT_FAILURE;
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) { return qserve::bench::Main(argc, argv); }
