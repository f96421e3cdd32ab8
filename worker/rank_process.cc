#include "worker/rank_process.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <future>
#include <mutex>
#include <span>

#include "common/log.h"
#include "common/metrics/metrics.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "worker/comm/local_host_group.h"
#include "worker/comm/tcp_host_group.h"
#include "worker/exec/follower.h"
#include "worker/exec/model_executor.h"
#include "worker/exec/rank.h"
#include "worker/group/heartbeat.h"
#include "worker/group/numa.h"
#include "worker/group/rendezvous_client.h"
#include "worker/leader.h"
#include "worker/progress_executor.h"

namespace qserve::worker {
namespace {

constexpr auto kRendezvousTimeout = std::chrono::seconds(120);
// What must be unblocked when the group is lost; members come as they are made. Thread-safe.
class GroupLoss {
 public:
  void Watch(comm::HostGroup* group) {
    const std::lock_guard lock(mutex_);
    group_ = group;
    AbortIfLost();
  }
  void Watch(comm::Communicator* communicator) {
    const std::lock_guard lock(mutex_);
    communicator_ = communicator;
    AbortIfLost();
  }
  // Whatever was watched is about to go.
  void Forget() {
    const std::lock_guard lock(mutex_);
    group_ = nullptr;
    communicator_ = nullptr;
  }
  void OnLoss(const std::string& reason) {
    LOG_ERROR("the group is lost: {}", reason);
    const std::lock_guard lock(mutex_);
    lost_ = true;
    reason_ = reason;
    AbortIfLost();
  }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return lost_ ? absl::UnavailableError(fmt::format("the group is lost: {}", reason_))
                 : absl::OkStatus();
  }

 private:
  void AbortIfLost() {
    if (!lost_) return;
    if (communicator_ != nullptr) communicator_->Abort();
    if (group_ != nullptr) group_->Abort();
  }

  mutable std::mutex mutex_;
  bool lost_ = false;
  std::string reason_;
  comm::HostGroup* group_ = nullptr;
  comm::Communicator* communicator_ = nullptr;
};

// The rank's ends of the group's connections.
struct Connections {
  std::unique_ptr<group::RendezvousClient> store;  // none in a group of one
  std::unique_ptr<comm::HostGroup> host_group;
};

absl::StatusOr<Connections> Connect(const group::RankIdentity& identity) {
  Connections connections;
  if (identity.size == 1) {
    connections.host_group = std::make_unique<comm::LocalHostGroup>();
    return connections;
  }
  const TimePoint deadline = SteadyClock().Now() + kRendezvousTimeout;
  ASSIGN_OR_RETURN(connections.store, group::RendezvousClient::Create(
                                          identity.rendezvous, identity.ToHello(), deadline));
  const comm::TcpHostGroupOptions options = {.rank = identity.rank,
                                             .size = identity.size,
                                             .bind_host = identity.bind_host,
                                             .generation = identity.generation,
                                             .group_secret = identity.group_secret,
                                             .config_hash = identity.config_hash};
  ASSIGN_OR_RETURN(connections.host_group,
                   comm::CreateTcpHostGroup(options, connections.store.get()));
  return connections;
}

// Where the rank runs.
struct Place {
  int threads = 1;              // its share of the processors, unless told otherwise
  std::vector<int> processors;  // that share; no other rank of this host has any of them
};

// Binds the rank to its NUMA node where that was asked for. Before any thread is started, so that
// all run there.
absl::StatusOr<Place> TakePlace(const Flags& flags, const group::RankIdentity& identity) {
  int sharing = identity.local_size, place = identity.local_rank;
  std::vector<group::NumaNode> nodes;
  if (BindsRanks(flags)) {
    ASSIGN_OR_RETURN(nodes, group::ReadNumaNodes(flags.numa_directory, group::AllowedCpus()));
  }
  if (nodes.size() > 1 && identity.local_size > 1) {
    const auto node_of = [&](int rank) {
      return group::NodeOfRank(rank, identity.local_size, static_cast<int>(nodes.size()));
    };
    const int mine = node_of(identity.local_rank);
    RETURN_IF_ERROR(group::BindToNode(nodes[static_cast<size_t>(mine)]));
    sharing = place = 0;
    for (int rank = 0; rank < identity.local_size; ++rank) {
      place += node_of(rank) == mine && rank < identity.local_rank ? 1 : 0;
      sharing += node_of(rank) == mine ? 1 : 0;
    }
    LOG_INFO("runs on NUMA node {}", nodes[static_cast<size_t>(mine)].id);
  }
  const std::vector<int> cpus = group::AllowedCpus();
  return Place{.threads = std::max(1, static_cast<int>(cpus.size()) / sharing),
               .processors = group::ShareOfCpus(cpus, place, sharing)};
}

// What --pin-threads asks for: every thread of the rank on a processor of its own.
absl::Status PinThreads(const Flags& flags, const Place& place, exec::ExecutorOptions& options) {
  if (!flags.pin_threads) return absl::OkStatus();
  if (options.threads > std::ssize(place.processors)) {
    return absl::InvalidArgumentError(fmt::format(
        "--pin-threads: rank {} has {} threads and {} processors of its own; take fewer --threads",
        options.rank, options.threads, place.processors.size()));
  }
  options.processors = place.processors;
  return absl::OkStatus();
}

// Says which part of the weights is in, about every tenth.
std::function<void(int64_t, int64_t)> LogLoading() {
  return [last = int64_t{0}](int64_t done, int64_t total) mutable {
    const int64_t tenth = total == 0 ? 0 : done * 10 / total;
    if (tenth == last) return;
    last = tenth;
    LOG_DEBUG("weights: {} %", tenth * 10);
  };
}

// What the device's memory is used for.
void ReportMemory(const std::vector<kernels::MemoryUse>& memory, Metrics& metrics) {
  if (memory.empty()) return;
  auto& family = prometheus::BuildGauge()
                     .Name("qserve_device_memory_bytes")
                     .Help("Device memory of this rank, by what it is for")
                     .Register(metrics.registry());
  for (const kernels::MemoryUse& use : memory) {
    LOG_INFO("device memory: {} {:.1f} MiB", use.purpose,
             static_cast<double>(use.bytes) / (1 << 20));
    family.Add({{"purpose", use.purpose}}).Set(static_cast<double>(use.bytes));
  }
}

void ReportStart(const exec::Rank& rank, Metrics& metrics) {
  auto& family = prometheus::BuildGauge()
                     .Name("qserve_startup_seconds")
                     .Help("Seconds that each phase of the start took")
                     .Register(metrics.registry());
  double total = 0;
  for (const exec::StartupPhase& phase : rank.startup_phases()) {
    LOG_INFO("start: {} {:.2f} s", phase.name, phase.seconds);
    family.Add({{"phase", phase.name}}).Set(phase.seconds);
    total += phase.seconds;
  }
  const exec::ModelDescription& model = rank.description();
  metrics.AddGauge("qserve_weight_bytes", "Weights of this rank on its device")
      .Set(static_cast<double>(model.weight_bytes));
  const auto mebibytes = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  const exec::ExecutorLimits& limits = rank.limits();
  LOG_INFO(
      "{} ({}), weights {:.1f} MiB, KV cache {:.1f} MiB ({} blocks of {} tokens), steps of {} "
      "tokens "
      "{:.1f} MiB, loaded in {:.2f} s",
      model.device.name, model.device.isa, mebibytes(model.weight_bytes),
      mebibytes(limits.kv_bytes_per_token * plan::kBlockTokens * limits.blocks), limits.blocks,
      plan::kBlockTokens, limits.max_step_tokens, mebibytes(model.activation_bytes), total);
  ReportMemory(model.memory, metrics);
}

void ReportPinning(const exec::ExecutorOptions& options, const exec::Rank& rank) {
  if (options.processors.empty()) return;
  if (rank.description().device.asynchronous) {
    LOG_WARN("pin-threads changes nothing: the threads of a GPU are not bound");
    return;
  }
  const auto used = std::span(options.processors).first(static_cast<size_t>(options.threads));
  LOG_INFO("threads stay on the processors {}", fmt::join(used, ", "));
}

}  // namespace

absl::Status RunRank(const Flags& flags, const group::RankIdentity& identity) {
  ASSIGN_OR_RETURN(const Place place, TakePlace(flags, identity));
  std::promise<void> stop;
  // Rank 0 drains at the first signal; the supervisor, which gets every signal too, decides about
  // all else.
  const bool leads = identity.rank == 0;
  const ShutdownSignal signals([&stop, leads](int count) {
    if (leads && count == 1) stop.set_value();
  });
  GroupLoss loss;
  ASSIGN_OR_RETURN(const auto heartbeat,
                   group::Heartbeat::Start(
                       identity, [&loss](const std::string& reason) { loss.OnLoss(reason); }));
  Metrics metrics;
  if (const std::string address = MetricsAddress(flags, identity.rank); !address.empty()) {
    RETURN_IF_ERROR(metrics.Serve(address));
  }
  ASSIGN_OR_RETURN(Connections connections, Connect(identity));
  comm::HostGroup& host_group = *connections.host_group;
  loss.Watch(&host_group);
  ASSIGN_OR_RETURN(exec::ExecutorOptions options, ExecutorOptionsOf(flags, identity.rank));
  const comm::GlooOptions gloo = {
      .rank = identity.rank, .size = identity.size, .bind_host = identity.bind_host};
  if (options.threads == 0) options.threads = place.threads;
  RETURN_IF_ERROR(PinThreads(flags, place, options));
  auto rank = exec::Rank::Create(
      options, host_group,
      exec::DefaultCommunicator(gloo, connections.store.get(), identity.generation,
                                identity.local_size == identity.size),
      LogLoading());
  if (!rank.ok()) {
    loss.Forget();
    return rank.status();
  }
  loss.Watch(&(*rank)->communicator());
  ReportStart(**rank, metrics);
  ReportPinning(options, **rank);
  absl::Status status;
  {
    exec::ModelExecutor model_executor(**rank, [&host_group] { host_group.Abort(); });
    ProgressExecutor executor(model_executor, *heartbeat);
    const SteadyClock clock;
    status = leads ? RunLeader(flags, **rank, executor, host_group, metrics, clock,
                               stop.get_future(), [&loss] { return loss.status(); })
                   : exec::RunFollower(host_group, executor);
    loss.Forget();
  }
  return status;
}

}  // namespace qserve::worker
