#include "worker/exec/rank.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/device_factory.h"
#include "worker/comm/host_staged_communicator.h"
#include "worker/comm/local_communicator.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/shared_memory_communicator.h"
#include "worker/exec/agreement.h"
#include "worker/exec/memory_need.h"
#include "worker/exec/numerics_id.h"
#include "worker/exec/step_key.h"
#include "worker/exec/warm_step.h"
#include "worker/model/device_status.h"
#include "worker/model/sharding.h"

namespace qserve::worker::exec {
namespace {

constexpr int32_t kMostSequences = 65536;
constexpr int64_t kMostStepTokens = int64_t{1} << 20;
constexpr int64_t kMostBlocks = int64_t{1} << 30;

int ThreadsOf(const ExecutorOptions& options) {
  if (options.threads > 0) return options.threads;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores / std::max(1, options.tensor_parallel_size));
}

absl::Status CheckOptions(const ExecutorOptions& options) {
  if (options.max_num_seqs < 1 || options.max_num_seqs > kMostSequences) {
    return absl::InvalidArgumentError(
        fmt::format("max-num-seqs {} is not in 1..{}", options.max_num_seqs, kMostSequences));
  }
  if (options.max_num_batched_tokens < 1 || options.max_num_batched_tokens > kMostStepTokens) {
    return absl::InvalidArgumentError(fmt::format("max-num-batched-tokens {} is not in 1..{}",
                                                  options.max_num_batched_tokens, kMostStepTokens));
  }
  if (options.max_model_len < 0 || options.kv_cache_memory < 0 || options.threads < 0) {
    return absl::InvalidArgumentError(
        "max-model-len, kv-cache-memory and threads must not be negative");
  }
  if (!options.processors.empty() && std::ssize(options.processors) < ThreadsOf(options)) {
    return absl::InvalidArgumentError(
        fmt::format("{} threads cannot each have one of {} processors", ThreadsOf(options),
                    options.processors.size()));
  }
  return absl::OkStatus();
}

// What connects CPUs: memory that they share on one host, TCP where that cannot be.
absl::StatusOr<std::unique_ptr<comm::Communicator>> HostCommunicator(
    const comm::GlooOptions& options, group::KeyValueStore* store, bool one_host,
    kernels::Backend& backend) {
  if (one_host) {
    auto shared = comm::CreateSharedMemoryCommunicator({.rank = options.rank, .size = options.size},
                                                       store, &backend);
    if (!absl::IsFailedPrecondition(shared.status())) return shared;
    LOG_WARN("ranks exchange tensors over TCP, which is slower: {}", shared.status().ToString());
  }
  return comm::CreateGlooCommunicator(options, store, &backend);
}

}  // namespace

CommunicatorFactory DefaultCommunicator(const comm::GlooOptions& options,
                                        group::KeyValueStore* store, uint64_t generation,
                                        bool one_host) {
  return [=](kernels::Backend& backend) -> absl::StatusOr<std::unique_ptr<comm::Communicator>> {
    if (options.size == 1) return std::make_unique<comm::LocalCommunicator>(&backend);
    if (!comm::OnGpu(backend)) return HostCommunicator(options, store, one_host, backend);
    const comm::NcclOptions nccl = {
        .rank = options.rank, .size = options.size, .generation = generation};
    ASSIGN_OR_RETURN(const bool own_gpus, comm::RanksHaveGpusOfTheirOwn(nccl, store));
    if (own_gpus) return comm::CreateNcclCommunicator(nccl, store, &backend);
    LOG_WARN("ranks share a GPU, so they exchange tensors by way of the host: slow");
    ASSIGN_OR_RETURN(auto on_host, HostCommunicator(options, store, one_host, backend));
    return std::make_unique<comm::HostStagedCommunicator>(&backend, std::move(on_host));
  };
}

// The phases of the start-up in order, each ended by a barrier of the group.
class Rank::Builder {
 public:
  Builder(const ExecutorOptions& options, comm::HostGroup& group,
          const CommunicatorFactory& communicator, std::function<void(int64_t, int64_t)> progress,
          const BackendFactory& backend)
      : options_(options),
        group_(group),
        communicator_factory_(communicator),
        backend_factory_(backend),
        progress_(std::move(progress)),
        threads_(ThreadsOf(options)),
        rank_(new Rank) {}

  absl::StatusOr<std::unique_ptr<Rank>> Build() {
    RETURN_IF_ERROR(CheckOptions(options_));
    RETURN_IF_ERROR(Phase("equal configuration", [&] {
      return RequireEqual(group_, "configuration", GroupConfigHash(options_));
    }));
    RETURN_IF_ERROR(Phase("backend", [&] { return MakeBackend(); }));
    RETURN_IF_ERROR(Phase("communicator", [&] { return Connect(); }));
    RETURN_IF_ERROR(Phase("weights", [&] { return Load(); }));
    const bool asynchronous = rank_->backend_->info().asynchronous;
    if (asynchronous) RETURN_IF_ERROR(Phase("largest steps", [&] { return RunLargestSteps(); }));
    RETURN_IF_ERROR(Phase("kv cache", [&] { return MakeKvCache(); }));
    RETURN_IF_ERROR(Phase("trial step", [&] { return TrialStep(); }));
    if (!asynchronous && !options_.record_steps) {
      LOG_INFO("no-cuda-graphs changes nothing: this device has no graphs");
    }
    if (asynchronous && options_.record_steps && !rank_->communicator_->WaitsForDevice()) {
      RETURN_IF_ERROR(Phase("recording", [&] { return RecordSteps(); }));
    }
    rank_->description_.memory = rank_->backend_->MemoryLedger();
    return std::move(rank_);
  }

 private:
  absl::Status Phase(const char* name, const std::function<absl::Status()>& work) {
    const TimePoint begin = SteadyClock().Now();
    RETURN_IF_ERROR(work());
    RETURN_IF_ERROR(group_.Barrier());
    rank_->phases_.push_back({name, ToSeconds(SteadyClock().Now() - begin)});
    LOG_DEBUG("start-up: {} took {:.2f} s", name, rank_->phases_.back().seconds);
    return absl::OkStatus();
  }

  absl::Status MakeBackend() {
    ASSIGN_OR_RETURN(checkpoint_, checkpoint::Checkpoint::Open(options_.model_dir));
    if (options_.full_precision_type != kernels::FloatType::kF32 &&
        model::LinearFormat(checkpoint_->config(), options_.quantize) !=
            kernels::WeightFormat::kFloat) {
      return absl::InvalidArgumentError(
          "full-precision-dtype bf16 is for models whose linears are in full precision; those of "
          "this one are quantized");
    }
    ASSIGN_OR_RETURN(
        rank_->backend_,
        model::ToAbsl(backend_factory_({.device = options_.device,
                                        .ordinal = options_.device_ordinal,
                                        .threads = threads_,
                                        .cpu_isa = options_.cpu_isa,
                                        .linear_type = options_.full_precision_type,
                                        .model_type = checkpoint_->config().float_type})));
    RETURN_IF_ERROR(BindThreads());
    rank_->description_.device = rank_->backend_->info();
    free_at_start_ = rank_->backend_->AvailableMemory();
    return absl::OkStatus();
  }

  // But the first, which is the executor's: other threads than that are still started from here.
  absl::Status BindThreads() {
    if (options_.processors.empty()) return absl::OkStatus();
    for (int thread = 1; thread < threads_; ++thread) {
      RETURN_IF_ERROR(model::ToAbsl(
          rank_->backend_->BindThread(thread, options_.processors[static_cast<size_t>(thread)])));
    }
    rank_->processor_ = options_.processors.front();
    return absl::OkStatus();
  }

  absl::Status Connect() {
    ASSIGN_OR_RETURN(rank_->communicator_, communicator_factory_(*rank_->backend_));
    if (rank_->communicator_->rank() != options_.rank ||
        rank_->communicator_->size() != options_.tensor_parallel_size) {
      return absl::InternalError("the communicator belongs to another group");
    }
    return absl::OkStatus();
  }

  absl::Status Load() {
    const std::unique_ptr<checkpoint::Checkpoint> checkpoint = std::move(checkpoint_);
    ModelDescription& description = rank_->description_;
    description.config = checkpoint->config();
    description.defaults = checkpoint->generation_defaults();
    ASSIGN_OR_RETURN(
        shard_, model::MakeShard(description.config, options_.rank, options_.tensor_parallel_size));
    description.kv_formats =
        LayerKvFormats(description.config, options_.kv_cache_dtype, options_.quantize);
    kv_shapes_ = KvCache::Shapes(description.config, shard_, description.kv_formats);
    const model::WeightOptions weight_options = {.lm_head = options_.lm_head_dtype,
                                                 .quantization = options_.quantize,
                                                 .reader_threads = threads_,
                                                 .progress = progress_};
    description.lm_head = model::LmHeadFormat(description.config, weight_options);
    description.numerics_id = NumericsId({.checkpoint_digest = checkpoint->digest(),
                                          .tensor_parallel_size = options_.tensor_parallel_size,
                                          .kernel_family = description.device.kernel_family,
                                          .lm_head = description.lm_head,
                                          .kv_formats = description.kv_formats,
                                          .quantization = options_.quantize});
    RETURN_IF_ERROR(RequireEqual(group_, "checkpoint", checkpoint->digest()));
    RETURN_IF_ERROR(WithAdvice(DecideModelLength()));
    absl::StatusOr<model::ModelWeights> loaded =
        model::LoadWeights(*checkpoint, shard_, *rank_->backend_, weight_options);
    if (!loaded.ok()) return WithAdvice(loaded.status());
    model::ModelWeights weights = *std::move(loaded);
    description.weight_bytes = weights.device_bytes;
    description.checkpoint_bytes = checkpoint->bytes_read();
    return MakeModel(std::move(weights));
  }

  // Where a device is too small for the model and `tokens` tokens, or for one sequence: how many of
  // its kind would do.
  absl::Status WithAdvice(const absl::Status& status, int64_t tokens = 0) const {
    const ModelDescription& description = rank_->description_;
    if (!absl::IsResourceExhausted(status) || !description.device.asynchronous) return status;
    const ServedFormats formats = {
        .linears = model::LinearFormat(description.config, options_.quantize),
        .lm_head = description.lm_head,
        .kv = description.kv_formats};
    if (tokens == 0) tokens = std::max<int64_t>(rank_->limits_.max_model_len, plan::kBlockTokens);
    return absl::ResourceExhaustedError(std::string(status.message()) +
                                        DegreeAdvice(description.config, formats,
                                                     options_.tensor_parallel_size, tokens,
                                                     free_at_start_));
  }

  // Positions that the model was made for, or fewer if asked. A length that nobody asked for
  // shrinks to what the KV memory can hold.
  absl::Status DecideModelLength() {
    const int64_t most = rank_->description_.config.max_position_embeddings;
    if (options_.max_model_len > most) {
      return absl::InvalidArgumentError(fmt::format(
          "max-model-len {} is beyond the model's {} positions", options_.max_model_len, most));
    }
    ASSIGN_OR_RETURN(const int64_t blocks, BlocksThatFit());
    const int64_t held = blocks * plan::kBlockTokens;
    const int64_t wanted =
        options_.max_model_len > 0 ? options_.max_model_len : std::min(most, held);
    rank_->limits_.max_model_len = static_cast<int32_t>(std::min<int64_t>(wanted, INT32_MAX));
    return CheckCapacity(blocks);  // before the weights are read for nothing
  }

  absl::Status CheckCapacity(int64_t blocks) const {
    const int64_t held = blocks * plan::kBlockTokens;
    if (held >= std::max(rank_->limits_.max_model_len, 1)) return absl::OkStatus();
    return absl::ResourceExhaustedError(fmt::format(
        "the KV cache holds {} tokens, fewer than max-model-len {}: give more kv-cache-memory",
        held, rank_->limits_.max_model_len));
  }

  absl::Status MakeModel(model::ModelWeights weights) {
    ExecutorLimits& limits = rank_->limits_;
    limits.slots = options_.max_num_seqs;
    limits.max_step_tokens = options_.max_num_batched_tokens;
    ASSIGN_OR_RETURN(rank_->model_,
                     model::Llama::Create(
                         rank_->description_.config, shard_, std::move(weights), *rank_->backend_,
                         *rank_->communicator_,
                         {.max_step_tokens = limits.max_step_tokens,
                          .max_logit_rows = std::min<int64_t>(limits.slots, limits.max_step_tokens),
                          .slots = limits.slots,
                          .max_positions = limits.max_model_len}));
    rank_->description_.activation_bytes = rank_->model_->activation_bytes();
    return absl::OkStatus();
  }

  // On the rank that can hold the least.
  absl::StatusOr<int64_t> BlocksThatFit() {
    const int64_t bytes =
        KvMemoryOfRank(options_.kv_cache_memory, options_.tensor_parallel_size, *rank_->backend_);
    const int64_t block_bytes = KvBytesPerToken(kv_shapes_) * plan::kBlockTokens;
    return AgreeOnMinimum(group_, std::min(bytes / block_bytes, kMostBlocks));
  }

  absl::Status MakeKvCache() {
    ExecutorLimits& limits = rank_->limits_;
    ASSIGN_OR_RETURN(const int64_t blocks, BlocksThatFit());
    if (options_.max_model_len == 0) {  // a device may have less left by now
      limits.max_model_len = static_cast<int32_t>(
          std::min<int64_t>(limits.max_model_len, blocks * plan::kBlockTokens));
    }
    RETURN_IF_ERROR(WithAdvice(CheckCapacity(blocks)));
    RETURN_IF_ERROR(WithAdvice(CheckMemory(blocks), blocks * plan::kBlockTokens));
    limits.blocks = static_cast<int32_t>(blocks);
    ASSIGN_OR_RETURN(rank_->kv_cache_,
                     KvCache::Create(*rank_->backend_, kv_shapes_, limits.blocks));
    limits.kv_bytes_per_token = rank_->kv_cache_->bytes_per_token();
    return absl::OkStatus();
  }

  // What was asked for may be more than there is; said before anything is allocated.
  absl::Status CheckMemory(int64_t blocks) const {
    const kernels::Backend& backend = *rank_->backend_;
    const int64_t asked = blocks * KvBytesPerToken(kv_shapes_) * plan::kBlockTokens;
    if (!backend.info().asynchronous || asked <= backend.AvailableMemory()) return absl::OkStatus();
    std::string used;
    for (const kernels::MemoryUse& use : backend.MemoryLedger()) {
      used += fmt::format(", {} {} MiB", use.purpose, use.bytes >> 20);
    }
    return absl::ResourceExhaustedError(
        fmt::format("kv-cache-memory asks for {} MiB of rank {}'s device, of which at most {} MiB "
                    "would fit beside what is there{}",
                    asked >> 20, options_.rank, backend.AvailableMemory() >> 20, used));
  }

  absl::Status RunStep(const WarmStep& step, const KvCache& cache) {
    std::vector<kernels::SampledToken> results;
    return model::ToAbsl(rank_->backend_->Run(
        0, [&] { rank_->model_->Forward(step.inputs(), cache.layers(), &results); }));
  }

  // Through a KV cache of a moment, so that the device's workspaces are there before the real one
  // takes what is left.
  absl::Status RunLargestSteps() {
    const ExecutorLimits& limits = rank_->limits_;
    const WarmStep steps[] = {WarmStep::Prefill(limits), WarmStep::Mixed(limits),
                              WarmStep::Decode(limits, RecordedRows(limits).back())};
    int32_t pages = 0;
    for (const WarmStep& step : steps) pages = std::max(pages, step.pages());
    ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                     KvCache::CreateScratch(*rank_->backend_, kv_shapes_, pages));
    for (const WarmStep& step : steps) RETURN_IF_ERROR(RunStep(step, *cache));
    return absl::OkStatus();
  }

  // One token through the whole model: what this backend has no kernel for, or a wire that does not
  // carry, shows now.
  absl::Status TrialStep() {
    return RunStep(WarmStep::Decode(rank_->limits_, 1), *rank_->kv_cache_);
  }

  // The largest first, whose workspaces serve the others; each behind a barrier, so that no rank
  // records a collective that another one still runs.
  absl::Status RecordSteps() {
    std::vector<int32_t> rows = RecordedRows(rank_->limits_);
    for (auto count = rows.rbegin(); count != rows.rend(); ++count) {
      const WarmStep step = WarmStep::Decode(rank_->limits_, *count);
      std::vector<kernels::SampledToken> results;
      RETURN_IF_ERROR(group_.Barrier());
      RETURN_IF_ERROR(model::ToAbsl(rank_->backend_->Record(static_cast<uint64_t>(*count), [&] {
        rank_->model_->Forward(step.inputs(), rank_->kv_cache_->layers(), &results);
      })));
    }
    rank_->recorded_rows_ = std::move(rows);
    return absl::OkStatus();
  }

  const ExecutorOptions& options_;
  comm::HostGroup& group_;
  const CommunicatorFactory& communicator_factory_;
  const BackendFactory& backend_factory_;
  const std::function<void(int64_t, int64_t)> progress_;
  const int threads_;
  std::unique_ptr<Rank> rank_;
  int64_t free_at_start_ = 0;                           // of the device, before the weights
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;  // from the backend's making to the weights
  model::Shard shard_;
  std::vector<kernels::KvShape> kv_shapes_;
};

absl::StatusOr<std::unique_ptr<Rank>> Rank::Create(const ExecutorOptions& options,
                                                   comm::HostGroup& group,
                                                   const CommunicatorFactory& communicator,
                                                   std::function<void(int64_t, int64_t)> progress,
                                                   const BackendFactory& backend) {
  absl::StatusOr<std::unique_ptr<Rank>> rank =
      Builder(options, group, communicator, std::move(progress), backend).Build();
  if (!rank.ok()) group.Abort();  // the others wait at a barrier
  return rank;
}

Rank::~Rank() = default;

}  // namespace qserve::worker::exec
