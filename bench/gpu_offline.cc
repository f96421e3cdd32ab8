// Throughput of a whole model on this machine's GPU: a random QoQ checkpoint of a known shape is
// written, loaded, and run by the real engine (scheduler, sampling, recorded steps), prompts in and
// tokens out, at given batches and at the largest that fits. Prints JSON lines as gpu_bench does.
// It needs neither gRPC nor Rust; with --device cpu and a small shape it shows anywhere that it
// works. Called by tests/gpu/bench.sh.
#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bench/make_model.h"
#include "bench/model_shapes.h"
#include "bench/offline.h"
#include "bench/statistics.h"
#include "common/cli/options.h"
#include "common/log.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "kernels/device_factory.h"
#include "quantizer/export.h"

namespace qserve::bench {
namespace {

using Json = nlohmann::ordered_json;
using worker::checkpoint::Scheme;

constexpr int kExitNoGpu = 77;
constexpr int kExitInterrupted = 130;
constexpr int32_t kMostSequences = 4096;
constexpr int kMostRuns = 100;
constexpr int64_t kMebibyte = int64_t{1} << 20;

struct Flags {
  std::string shape = "llama-3.1-8b", scheme = "g128", device = "cuda", batches = "256,largest";
  std::string folder, kv_cache_memory = "auto";
  int32_t prompt_length = 1024, output_length = 512, most_sequences = 2048;
  int64_t max_num_batched_tokens = 8192;
  int threads = 0, repeat = 3;
  double seconds = 180;
};

void Declare(cli::Options& options, Flags& flags) {
  options.Add("shape", flags.shape, "Of the model: a name that qserve-bench make-model knows");
  options.Add("scheme", flags.scheme, "g128 or gchn")->check(CLI::IsMember({"g128", "gchn"}));
  options.Add("device", flags.device, "cuda or cpu")->check(CLI::IsMember({"cuda", "cpu"}));
  options.Add("batches", flags.batches, "Sequences at once: numbers, or \"largest\" that fits");
  options.Add("most-sequences", flags.most_sequences, "Beyond which no batch goes")
      ->check(CLI::Range(1, kMostSequences));
  options.Add("prompt-length", flags.prompt_length, "Tokens of each prompt")
      ->check(CLI::Range(1, 1 << 17));
  options.Add("output-length", flags.output_length, "Tokens generated for each")
      ->check(CLI::Range(1, 1 << 17));
  options.Add("repeat", flags.repeat, "Runs of each batch")->check(CLI::Range(1, kMostRuns));
  options.Add("seconds", flags.seconds, "No run of a batch begins that would go on after them")
      ->check(CLI::Range(0.0, 1e6));
  options.Add("max-num-batched-tokens", flags.max_num_batched_tokens, "Tokens in a step")
      ->check(CLI::Range(1, 1 << 20));
  options.Add("kv-cache-memory", flags.kv_cache_memory, "Bytes, KiB, MiB or GiB; auto");
  options.Add("folder", flags.folder, "For the checkpoint, while it is loaded; default: TMPDIR");
  options.Add("threads", flags.threads, "Of the host; 0: all cores")->check(CLI::Range(0, 4096));
}

// Gone with the object, or earlier.
class TemporaryModel {
 public:
  static absl::StatusOr<TemporaryModel> In(const std::string& folder) {
    std::string path = folder + "/qserve_offline_XXXXXX";
    if (mkdtemp(path.data()) == nullptr)
      return absl::UnavailableError(fmt::format("no folder can be made in {}", folder));
    return TemporaryModel(std::move(path));
  }
  TemporaryModel(TemporaryModel&& other) noexcept : path_(std::move(other.path_)) {
    other.path_.clear();
  }
  TemporaryModel& operator=(TemporaryModel&&) = delete;
  ~TemporaryModel() { Remove(); }

  std::string model() const { return path_ + "/model"; }
  void Remove() const {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

 private:
  explicit TemporaryModel(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

void Emit(const Flags& flags, Json fields) {
  Json line = {{"what", "offline"}, {"from", "engine"}, {"model", flags.shape}};
  line["format"] = flags.scheme == "gchn" ? "w4_channel" : "w4_group";
  line["prompt"] = flags.prompt_length;
  line["output"] = flags.output_length;
  line.update(fields);
  std::cout << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
}

std::string Folder(const Flags& flags) {
  if (!flags.folder.empty()) return flags.folder;
  const char* const folder = std::getenv("TMPDIR");
  return folder != nullptr && *folder != '\0' ? folder : "/tmp";
}

class OfflineProgram {
 public:
  explicit OfflineProgram(const Flags& flags) : flags_(flags) {}

  // `device_memory` is what weights may take. What cannot be measured is said in lines of its own.
  absl::Status Run(TemporaryModel& model, int64_t device_memory) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> batches, Batches());
    RETURN_IF_ERROR(CheckRoom(device_memory));
    RETURN_IF_ERROR(Make(model));
    RETURN_IF_ERROR(Load(model, batches));
    model.Remove();
    absl::Status worst;
    for (const int32_t wanted : batches) {
      const absl::Status status = Measure(wanted);
      if (status.ok()) continue;
      Emit(flags_, {{"batch", wanted}, {"absent", std::string(status.message())}});
      if (!absl::IsInvalidArgument(status)) worst = status;  // else it only does not fit
    }
    return worst;
  }

 private:
  Scheme scheme() const {
    return flags_.scheme == "gchn" ? Scheme::kQoqPerChannel : Scheme::kQoqGroup128;
  }
  // 0 stands for the largest.
  absl::StatusOr<std::vector<int32_t>> Batches() const {
    std::vector<int32_t> batches;
    for (const auto& part : CLI::detail::split(flags_.batches, ',')) {
      int32_t batch = 0;
      if (part != "largest" &&
          (!CLI::detail::lexical_cast(part, batch) || batch < 1 || batch > flags_.most_sequences)) {
        return absl::InvalidArgumentError(fmt::format(
            "--batches: \"{}\" is neither \"largest\" nor in 1..{}", part, flags_.most_sequences));
      }
      batches.push_back(batch);
    }
    return batches;
  }

  // Said before minutes are spent on a checkpoint that cannot be written or loaded.
  absl::Status CheckRoom(int64_t device_memory) const {
    ASSIGN_OR_RETURN(const ModelShape shape, FindShape(flags_.shape));
    ASSIGN_OR_RETURN(const auto config, worker::checkpoint::ParseModelConfig(
                                            shape.config_json, shape.generation_config_json));
    int64_t bytes = 0;
    for (const auto& tensor : quantizer::QoqTensors(config, scheme())) bytes += tensor.bytes();
    struct statvfs disk{};
    if (statvfs(Folder(flags_).c_str(), &disk) != 0)
      return absl::NotFoundError(fmt::format("there is no folder {}", Folder(flags_)));
    const auto room = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
    if (room < bytes + bytes / 16) {
      return absl::ResourceExhaustedError(
          fmt::format("the checkpoint takes {} MiB in {}, where {} MiB are free", bytes / kMebibyte,
                      Folder(flags_), room / kMebibyte));
    }
    if (bytes > device_memory) {
      return absl::ResourceExhaustedError(
          fmt::format("the weights take about {} MiB, and the GPU has {} MiB", bytes / kMebibyte,
                      device_memory / kMebibyte));
    }
    return absl::OkStatus();
  }

  absl::Status Make(const TemporaryModel& model) {
    const SteadyClock clock;
    const TimePoint start = clock.Now();
    MakeModelOptions options;
    options.scheme = scheme();
    options.threads = flags_.threads;
    RETURN_IF_ERROR(MakeModel(flags_.shape, model.model(), options));
    make_seconds_ = ToSeconds(clock.Now() - start);
    return absl::OkStatus();
  }

  // Slots cost memory, so that a second load with as many as fit follows where the first guess was
  // much too high.
  absl::Status Load(const TemporaryModel& model, const std::vector<int32_t>& batches) {
    worker::exec::ExecutorOptions executor;
    executor.model_dir = model.model();
    executor.device = flags_.device;
    executor.threads = flags_.threads;
    executor.max_num_batched_tokens = flags_.max_num_batched_tokens;
    executor.max_model_len = flags_.prompt_length + flags_.output_length;
    if (flags_.kv_cache_memory != "auto") {
      const auto bytes = cli::ParseBytes(flags_.kv_cache_memory);
      if (!bytes || *bytes == 0)
        return absl::InvalidArgumentError("--kv-cache-memory must be auto or a size such as 4GiB");
      executor.kv_cache_memory = *bytes;
    }
    const bool largest = std::find(batches.begin(), batches.end(), 0) != batches.end();
    executor.max_num_seqs =
        largest ? flags_.most_sequences : *std::max_element(batches.begin(), batches.end());
    ASSIGN_OR_RETURN(session_, OfflineSession::Load(executor));
    const int32_t fits = session_->LargestBatch(flags_.prompt_length, flags_.output_length);
    const int32_t better = fits + fits / 8 + 1;
    if (largest && better < executor.max_num_seqs * 3 / 4) {
      session_ = nullptr;
      executor.max_num_seqs = std::max(better, *std::max_element(batches.begin(), batches.end()));
      ASSIGN_OR_RETURN(session_, OfflineSession::Load(executor));
    }
    return absl::OkStatus();
  }

  absl::Status Measure(int32_t wanted) {
    OfflineOptions options;
    options.prompt_length = flags_.prompt_length;
    options.output_length = flags_.output_length;
    options.batch =
        wanted > 0 ? wanted : session_->LargestBatch(flags_.prompt_length, flags_.output_length);
    if (options.batch < 1) return absl::InvalidArgumentError("not even one sequence fits");
    RETURN_IF_ERROR(session_->WarmUp(options));
    std::vector<double> prefill, decode, rates;
    double spent = 0;
    while (std::ssize(rates) < flags_.repeat) {
      ASSIGN_OR_RETURN(const OfflineRun run, session_->Run(options));
      const double taken = run.prefill_seconds + run.decode_seconds;
      rates.push_back(static_cast<double>(options.batch) * options.output_length / taken);
      prefill.push_back(run.prefill_seconds);
      decode.push_back(run.decode_seconds);
      spent += taken;
      if (spent + taken > flags_.seconds) break;
    }
    const worker::exec::ModelDescription& model = session_->rank().description();
    const Summary summary = Summarize(rates);
    Emit(flags_, {{"batch", options.batch},
                  {"largest", wanted == 0},
                  {"most_sequences", session_->rank().limits().slots},
                  {"runs", rates.size()},
                  {"tokens_per_second", Median(rates)},
                  {"tokens_per_second_min", summary.min},
                  {"tokens_per_second_max", summary.max},
                  {"until_last_first_token_s", Median(prefill)},
                  {"from_there_s", Median(decode)},
                  {"max_num_batched_tokens", flags_.max_num_batched_tokens},
                  {"kv_blocks", session_->rank().limits().blocks},
                  {"kv_bytes_per_token", session_->rank().limits().kv_bytes_per_token},
                  {"weight_bytes", model.weight_bytes},
                  {"recorded_steps", session_->rank().recorded_rows().size()},
                  {"make_s", make_seconds_},
                  {"load_s", session_->load_seconds()},
                  {"device", model.device.name}});
    return absl::OkStatus();
  }

  const Flags& flags_;
  std::unique_ptr<OfflineSession> session_;
  double make_seconds_ = 0;
};

int Main(int argc, char** argv) {
  Flags flags;
  cli::Options options("gpu_offline", "Tokens per second of a random model, by the real engine");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  if (flags.threads == 0)
    flags.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  auto model = TemporaryModel::In(Folder(flags));
  // Tens of gigabytes must not be left behind.
  const ShutdownSignal watcher([&model](int) {
    if (model.ok()) model->Remove();
    std::_Exit(kExitInterrupted);
  });
  int64_t device_memory = std::numeric_limits<int64_t>::max();
  if (flags.device == "cuda") {
    const auto gpu = kernels::CreateBackend({.device = "cuda"});
    if (!gpu.ok()) {
      std::cerr << "SKIPPED: " << gpu.status().message() << std::endl;
      return kExitNoGpu;
    }
    device_memory = (*gpu)->AvailableMemory();
  }
  absl::Status status = InitLogging("bench", "warn", "text");
  if (status.ok()) status = model.status();
  if (status.ok()) status = OfflineProgram(flags).Run(*model, device_memory);
  if (status.ok()) return EXIT_SUCCESS;
  Emit(flags, {{"absent", std::string(status.message())}});
  // What does not fit on this machine is a result.
  return absl::IsResourceExhausted(status) ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) { return qserve::bench::Main(argc, argv); }
