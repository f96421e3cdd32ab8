// One rank of a replica, put together: backend, communicator, weights, model, KV cache. The
// composition root of everything that computes: rank.cc is the only file that names a concrete
// communicator. Made once by worker/main (and bench, tests), then driven by a ModelExecutor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/device_factory.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/comm/communicator.h"
#include "worker/comm/gloo_communicator.h"
#include "worker/comm/host_group.h"
#include "worker/exec/executor_options.h"
#include "worker/exec/kv_cache.h"
#include "worker/exec/step_executor.h"
#include "worker/model/llama.h"

namespace qserve::worker::exec {

// Connects this rank's backend to its group. Called once, on the thread that creates the rank.
using CommunicatorFactory =
    std::function<absl::StatusOr<std::unique_ptr<comm::Communicator>>(kernels::Backend& backend)>;

// A group of one needs no transport. A larger one on CPUs is connected by shared memory if all its
// ranks are on one host, else by Gloo; on GPUs by NCCL, and where ranks share a GPU by way of the
// host as CPUs are. `generation` is the group's. `store` must outlive the factory's call.
CommunicatorFactory DefaultCommunicator(const comm::GlooOptions& options,
                                        group::KeyValueStore* store, uint64_t generation = 0,
                                        bool one_host = false);

// Makes a rank's device; kernels::CreateBackend, but for tests.
using BackendFactory = std::function<kernels::StatusOr<std::unique_ptr<kernels::Backend>>(
    const kernels::DeviceOptions&)>;

// How long a phase of the start-up took, its barrier included.
struct StartupPhase {
  std::string name;
  double seconds = 0;
};

// What a replica says of itself.
struct ModelDescription {
  checkpoint::ModelConfig config;
  checkpoint::GenerationDefaults defaults;
  std::string numerics_id;
  kernels::WeightFormat lm_head = kernels::WeightFormat::kFloat;
  std::vector<kernels::KvFormat> kv_formats;  // one a layer
  kernels::DeviceInfo device;
  int64_t weight_bytes = 0;                // of this rank, on its device
  int64_t activation_bytes = 0;            // for the values of the largest step, likewise
  int64_t checkpoint_bytes = 0;            // that this rank read
  std::vector<kernels::MemoryUse> memory;  // of its device, by purpose; empty on a CPU
};

class Rank {
 public:
  // Every rank of `group` calls this with the same options but `rank` and `device_ordinal`; phases
  // end with a barrier, and an error on any rank fails all (Unavailable where the reason is another
  // rank's). `progress` sees the weights come in.
  static absl::StatusOr<std::unique_ptr<Rank>> Create(
      const ExecutorOptions& options, comm::HostGroup& group,
      const CommunicatorFactory& communicator,
      std::function<void(int64_t done, int64_t total)> progress = {},
      const BackendFactory& backend = kernels::CreateBackend);
  ~Rank();
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  const ExecutorLimits& limits() const { return limits_; }
  const ModelDescription& description() const { return description_; }
  const std::vector<StartupPhase>& startup_phases() const { return phases_; }
  // Row counts of the recorded steps (step_key.h), the same on all ranks; none where the device
  // does not record.
  std::span<const int32_t> recorded_rows() const { return recorded_rows_; }

  // For the one thread that runs steps.
  kernels::Backend& backend() { return *backend_; }
  comm::Communicator& communicator() { return *communicator_; }
  model::Llama& model() { return *model_; }
  KvCache& kv_cache() { return *kv_cache_; }
  int rank() const { return communicator_->rank(); }
  // That the thread which runs steps is to stay on; none where it may go where it likes.
  std::optional<int> processor() const { return processor_; }

 private:
  class Builder;
  Rank() = default;

  // Later members use earlier ones: destroyed in reverse.
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<comm::Communicator> communicator_;
  std::unique_ptr<KvCache> kv_cache_;
  std::unique_ptr<model::Llama> model_;
  ExecutorLimits limits_;
  ModelDescription description_;
  std::vector<StartupPhase> phases_;
  std::vector<int32_t> recorded_rows_;
  std::optional<int> processor_;
};

}  // namespace qserve::worker::exec
