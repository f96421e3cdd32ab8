// A small stand-in for qserve-worker, for tests of the supervisor: the supervisor when started by a
// test, a rank when started by the supervisor. Its ranks connect as real ones do and add numbers in
// steps that rank 0 announces, until SIGTERM.
//
//   group_test_rank MODE TP [NODES NODE_RANK RENDEZVOUS SECRET CONFIG]
//
// MODE: serve | crash (rank 1 exits with 7 at start) | hang (never stops its ranks) | stall (rank 1
// is busy without progress)
#include <signal.h>
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/worker/comm/host_memory_backend.h"
#include "worker/comm/gloo_communicator.h"
#include "worker/comm/tcp_host_group.h"
#include "worker/group/heartbeat.h"
#include "worker/group/rank_identity.h"
#include "worker/group/rendezvous_client.h"
#include "worker/group/supervisor.h"

namespace qserve::worker {
namespace {

struct Connected {
  comm::HostMemoryBackend backend;
  std::unique_ptr<comm::HostGroup> host_group;
  std::unique_ptr<comm::Communicator> communicator;
};

[[noreturn]] void Die(int code, const std::string& why) {
  std::printf("%s\n", why.c_str());
  std::fflush(stdout);
  _exit(code);
}

template <class T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) Die(3, std::string(value.status().message()));
  return *std::move(value);
}
void OkOrDie(const absl::Status& status) {
  if (!status.ok()) Die(3, std::string(status.message()));
}

void Connect(const group::RankIdentity& identity, Connected* connected) {
  const auto store = OrDie(
      group::RendezvousClient::Create(identity.rendezvous, identity.ToHello(),
                                      std::chrono::steady_clock::now() + std::chrono::seconds(60)));
  comm::TcpHostGroupOptions host;
  host.rank = identity.rank;
  host.size = identity.size;
  host.bind_host = identity.bind_host;
  host.generation = identity.generation;
  host.group_secret = identity.group_secret;
  host.config_hash = identity.config_hash;
  connected->host_group = OrDie(comm::CreateTcpHostGroup(host, store.get()));
  comm::GlooOptions gloo;
  gloo.rank = identity.rank;
  gloo.size = identity.size;
  gloo.bind_host = identity.bind_host;
  connected->communicator =
      OrDie(comm::CreateGlooCommunicator(gloo, store.get(), &connected->backend));
  OkOrDie(connected->host_group->Barrier());
}

// One step of all ranks: the sum of (rank + 1) over ranks.
void Step(const group::RankIdentity& identity, Connected* connected) {
  std::vector<float> data(1000, static_cast<float>(identity.rank + 1));
  const kernels::Status status = connected->backend.Run(
      0, [&] { connected->communicator->AllReduceSumInPlace({data.data(), 1, 1000, 1000}); });
  if (!status.ok()) Die(3, "step failed: " + status.message());
  const float expected = static_cast<float>(identity.size * (identity.size + 1) / 2);
  for (const float value : data) {
    if (std::bit_cast<uint32_t>(value) != std::bit_cast<uint32_t>(expected)) Die(9, "wrong sum");
  }
}

bool StopAsked(const sigset_t& set) {
  const timespec pause{0, 10'000'000};
  return sigtimedwait(&set, nullptr, &pause) == SIGTERM;
}

void Serve(const group::RankIdentity& identity, group::Heartbeat* heartbeat,
           const sigset_t& stop_signals, bool obeys) {
  Connected connected;
  if (identity.size > 1) Connect(identity, &connected);
  std::printf("rank %d at %s is ready\n", identity.rank, identity.bind_host.c_str());
  std::fflush(stdout);
  if (identity.rank == 0) {
    while (!StopAsked(stop_signals) || !obeys) {
      if (identity.size == 1) continue;
      OkOrDie(connected.host_group->Broadcast("step"));
      Step(identity, &connected);
      heartbeat->NoteProgress();
    }
    if (identity.size > 1) OkOrDie(connected.host_group->Broadcast("end"));
    return;
  }
  while (OrDie(connected.host_group->ReceiveBroadcast()) == "step") {
    Step(identity, &connected);
    heartbeat->NoteProgress();
  }
}

int RunRank(const group::RankIdentity& identity, const std::string& mode) {
  // Before any thread, so that every thread inherits it.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigprocmask(SIG_BLOCK, &stop_signals, nullptr);
  if (mode == "crash" && identity.rank == 1) Die(7, "rank 1 crashes");
  const auto heartbeat =
      OrDie(group::Heartbeat::Start(identity, [&identity](const std::string& reason) {
        Die(4, "rank " + std::to_string(identity.rank) + " was told: " + reason);
      }));
  if (mode == "stall" && identity.rank == 1) heartbeat->SetBusy(true);
  if (mode == "stall") {
    std::this_thread::sleep_for(std::chrono::minutes(5));
    return 0;
  }
  Serve(identity, heartbeat.get(), stop_signals, mode != "hang");
  return 0;
}

int Main(std::span<char*> arguments) {
  const auto argument = [&](size_t i, const char* otherwise) {
    return std::string(i < arguments.size() ? arguments[i] : otherwise);
  };
  const auto identity = group::RankIdentityFromEnvironment();
  if (!identity.ok()) Die(5, std::string(identity.status().message()));
  const std::string mode = argument(1, "serve");
  if (identity->has_value()) return RunRank(**identity, mode);
  group::GroupOptions options;
  options.tensor_parallel_size = std::atoi(argument(2, "1").c_str());
  options.nodes = std::atoi(argument(3, "1").c_str());
  options.node_rank = std::atoi(argument(4, "0").c_str());
  options.rendezvous = argument(5, "");
  options.user_secret = argument(6, "");
  options.config_hash = argument(7, "c0ffee");
  options.join_timeout = std::chrono::minutes(1);
  if (mode == "stall") options.progress_timeout = std::chrono::milliseconds(500);
  return group::RunSupervisor(options, arguments);
}

}  // namespace
}  // namespace qserve::worker

int main(int argc, char** argv) { return qserve::worker::Main({argv, static_cast<size_t>(argc)}); }
