#include "worker/group/supervisor.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/group/event_loop.h"
#include "worker/group/hello.h"
#include "worker/group/node_link.h"
#include "worker/group/rank_process.h"
#include "worker/group/rendezvous_server.h"
#include "worker/group/secret.h"
#include "worker/group/stop_signals.h"

namespace qserve::worker::group {
namespace {

constexpr Duration kTick = std::chrono::milliseconds(100);
// A turn of the loop counts as at most this much silence of others: when this process itself was
// stopped or starved, the signs of life it missed were not missing.
constexpr Duration kMaxTurn = std::chrono::milliseconds(500);
constexpr Duration kListenPatience = std::chrono::seconds(60);
constexpr Duration kListenPause = std::chrono::seconds(2);
constexpr Duration kJudgeDelay = std::chrono::milliseconds(200);
constexpr Duration kReapTimeout = std::chrono::seconds(10);
constexpr Duration kWarnEvery = std::chrono::seconds(60);

TimePoint Now() { return std::chrono::steady_clock::now(); }

class Supervisor {
 public:
  Supervisor(const GroupOptions& options, std::span<char* const> argv)
      : options_(options), argv_(argv) {}

  int Run() {
    loop_.Watch(signals_.fd(), POLLIN, [this](short) { OnSignal(); });
    absl::Status started = Gather();
    if (started.ok() && !exit_code_) started = StartRanks();
    if (!started.ok() && !exit_code_) {
      LOG_ERROR("the group could not start: {}", std::string(started.message()));
      Lose("a supervisor could not start its ranks", 1);
      KillAll();
    }
    while (!exit_code_) Turn();
    return *exit_code_;
  }

 private:
  bool several() const { return options_.nodes > 1; }
  bool is_first_node() const { return options_.node_rank == 0; }
  int local_size() const { return options_.tensor_parallel_size / options_.nodes; }

  // Start.

  // Brings the nodes together and settles what ranks are told.
  absl::Status Gather() {
    identity_.size = options_.tensor_parallel_size;
    identity_.local_size = local_size();
    identity_.node_rank = options_.node_rank;
    identity_.config_hash = options_.config_hash;
    identity_.bind_host = "127.0.0.1";
    identity_.heartbeat_interval = options_.heartbeat_timeout / 6;
    identity_.supervisor_pid = getpid();
    if (several() && options_.user_secret.empty()) {
      LOG_WARN("no rendezvous secret is set: whoever reaches {} can join", options_.rendezvous);
    }
    return is_first_node() ? GatherAsFirst() : GatherAsOther();
  }

  absl::Status GatherAsFirst() {
    RendezvousOptions rendezvous;
    ASSIGN_OR_RETURN(rendezvous.generation, RandomGeneration());
    ASSIGN_OR_RETURN(rendezvous.group_secret, RandomSecret());
    identity_.generation = rendezvous.generation;
    identity_.group_secret = rendezvous.group_secret;
    if (options_.tensor_parallel_size == 1) return absl::OkStatus();  // nobody to meet
    rendezvous.listen = {"127.0.0.1", 0};
    if (several()) {
      ASSIGN_OR_RETURN(rendezvous.listen, ParseEndpoint(options_.rendezvous));
    }
    rendezvous.nodes = options_.nodes;
    rendezvous.ranks = options_.tensor_parallel_size;
    rendezvous.user_secret = options_.user_secret;
    rendezvous.config_hash = options_.config_hash;
    rendezvous.node_timeout = options_.node_timeout;
    node_done_.resize(static_cast<size_t>(options_.nodes));
    RETURN_IF_ERROR(ServeRendezvous(rendezvous));
    if (exit_code_) return absl::OkStatus();
    const TimePoint deadline = Now() + options_.join_timeout;
    if (several()) {
      LOG_INFO("waiting for {} other nodes at {}", options_.nodes - 1,
               server_->endpoint().ToString());
    }
    while (!server_->complete() && !exit_code_) {
      if (Now() >= deadline) return absl::DeadlineExceededError("not all nodes came in time");
      Turn();
    }
    identity_.rendezvous = server_->endpoint();
    if (several()) {
      identity_.bind_host = server_->node_facing_endpoint().host;
      identity_.rendezvous.host = identity_.bind_host;
      server_->SendToNodes({NodeMessage::Type::kStart, ""});
    }
    return absl::OkStatus();
  }

  // The name of this node may not resolve at once where names come with the process (Kubernetes),
  // so several nodes are worth some patience.
  absl::Status ServeRendezvous(const RendezvousOptions& rendezvous) {
    const TimePoint deadline = Now() + (several() ? kListenPatience : Duration(0));
    while (true) {
      auto server = RendezvousServer::Create(
          &loop_, rendezvous,
          [this](int node, const NodeMessage& message) { OnNode(node, message); });
      if (server.ok()) {
        server_ = *std::move(server);
        return absl::OkStatus();
      }
      if (Now() >= deadline || exit_code_) return server.status();
      LOG_WARN("{}", std::string(server.status().message()));
      const TimePoint next = Now() + kListenPause;
      while (Now() < next && !exit_code_) loop_.RunOnce(kTick);
    }
  }

  absl::Status GatherAsOther() {
    ASSIGN_OR_RETURN(const Endpoint rendezvous, ParseEndpoint(options_.rendezvous));
    Hello hello;
    hello.role = Role::kNode;
    hello.index = static_cast<uint32_t>(options_.node_rank);
    hello.count = static_cast<uint32_t>(options_.nodes);
    hello.secret = options_.user_secret;
    hello.config_hash = options_.config_hash;
    const TimePoint deadline = Now() + options_.join_timeout;
    absl::StatusOr<std::unique_ptr<NodeLink>> link =
        NodeLink::Join(rendezvous, hello, deadline, signals_.fd());
    if (absl::IsCancelled(link.status())) {
      Finish(0);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(link.status());
    link_ = *std::move(link);
    identity_.generation = link_->welcome().generation;
    identity_.group_secret = link_->welcome().group_secret;
    identity_.bind_host = link_->local_endpoint().host;
    identity_.rendezvous = link_->rendezvous_endpoint();
    loop_.Watch(link_->fd(), POLLIN, [this](short) {
      link_->Read([this](const NodeMessage& message) { OnFirstNode(message); });
    });
    LOG_INFO("joined the group as node {} from {}", options_.node_rank, identity_.bind_host);
    while (!start_ranks_ && !exit_code_) {
      if (Now() >= deadline) return absl::DeadlineExceededError("not all nodes came in time");
      Turn();
    }
    return absl::OkStatus();
  }

  absl::Status StartRanks() {
    ranks_.reserve(static_cast<size_t>(local_size()));
    for (int local = 0; local < local_size(); ++local) {
      identity_.local_rank = local;
      identity_.rank = options_.node_rank * local_size() + local;
      ASSIGN_OR_RETURN(RankProcess process, RankProcess::Spawn(identity_, argv_));
      LOG_INFO("rank {} of {} is process {}", identity_.rank, identity_.size, process.pid());
      ranks_.push_back(std::move(process));
      // By index: the vector keeps its place, but handlers should not depend on it.
      const auto index = static_cast<size_t>(local);
      loop_.Watch(ranks_[index].pidfd(), POLLIN, [this, index](short) { OnExit(index); });
      loop_.Watch(ranks_[index].control_fd(), POLLIN, [this, index](short revents) {
        ranks_[index].ReadBeats();
        if ((revents & POLLHUP) != 0) loop_.Forget(ranks_[index].control_fd());
      });
    }
    return absl::OkStatus();
  }

  // One turn.

  void Turn() {
    loop_.RunOnce(kTick);
    const TimePoint now = Now();
    const Duration elapsed = std::min<Duration>(now - last_turn_, kMaxTurn);
    last_turn_ = now;
    if (server_ != nullptr) server_->Tick(elapsed);
    if (exit_code_) return;
    SendBeats(now);
    JudgeEnds(now);
    for (RankProcess& rank : ranks_) JudgeSilence(rank, elapsed);
    if (link_ != nullptr && !lost_) {
      link_->silence += elapsed;
      if (link_->silence > options_.node_timeout) {
        Lose(fmt::format("node 0 was silent for {:.1f} s", ToSeconds(options_.node_timeout)), 1);
      }
    }
    if (now >= kill_at_) KillAll();
    if (lost_) FinishIfReaped(now);
  }

  void SendBeats(TimePoint now) {
    if (now < next_beat_) return;
    next_beat_ = now + options_.node_timeout / 6;
    if (server_ != nullptr) server_->SendToNodes({NodeMessage::Type::kBeat, ""});
    if (link_ != nullptr) link_->Send({NodeMessage::Type::kBeat, ""});
  }

  void JudgeSilence(RankProcess& rank, Duration elapsed) {
    if (!rank.running() || lost_) return;
    rank.silence += elapsed;
    const Duration allowed =
        rank.has_beaten() ? options_.heartbeat_timeout : options_.start_timeout;
    if (rank.silence > allowed) {
      Lose(fmt::format("rank {} (pid {}) gave no sign of life for {:.1f} s", rank.rank(),
                       rank.pid(), ToSeconds(allowed)),
           1);
      rank.Signal(SIGKILL);  // it cannot hear the reason
      return;
    }
    const Duration stuck = rank.last_beat().busy
                               ? std::chrono::milliseconds(rank.last_beat().progress_age_ms)
                               : Duration(0);
    if (options_.progress_timeout > Duration(0) && stuck > options_.progress_timeout) {
      Lose(fmt::format("rank {} (pid {}) made no progress for {:.1f} s", rank.rank(), rank.pid(),
                       ToSeconds(stuck)),
           1);
    } else if (stuck > kWarnEvery && Now() >= next_warning_) {
      next_warning_ = Now() + kWarnEvery;
      LOG_WARN("rank {} has been in one step for {:.0f} s", rank.rank(), ToSeconds(stuck));
    }
  }

  // Ends that come together are judged together, and the one killed by a signal is the cause: the
  // others only noticed it, perhaps before its corpse was seen, perhaps on another node.
  void JudgeEnds(TimePoint now) {
    const RankProcess* failed = nullptr;
    for (const size_t index : ended_) {
      const RankProcess& rank = ranks_[index];
      if (!rank.ended_well() && (failed == nullptr || rank.signal() != 0)) failed = &rank;
    }
    if (failed != nullptr && failed->signal() == 0 && !lost_) {
      if (judge_at_ == kNever) judge_at_ = now + kJudgeDelay;
      if (now < judge_at_) return;
    }
    ended_.clear();
    if (lost_) return;
    if (failed != nullptr) {
      const bool stopped_early = stopping_ && failed->rank() == 0 && failed->signal() == SIGTERM;
      if (stopped_early) {
        LOG_INFO("rank 0 was stopped before it was ready to drain");
        Lose("the group was stopped before it was ready", 0);
      } else {
        Lose(failed->HowEnded(), failed->exit_code() != 0 ? failed->exit_code() : 1);
      }
      return;
    }
    const bool any = std::any_of(ranks_.begin(), ranks_.end(),
                                 [](const auto& rank) { return rank.ended_well(); });
    if (!any) return;
    if (exit_deadline_ == kNever) exit_deadline_ = now + options_.exit_grace;
    if (EveryRankEndedWell()) return EndWell();
    if (now < exit_deadline_) return;
    for (const RankProcess& rank : ranks_) {
      if (rank.running()) return Lose(rank.HowEnded() + ", though others have ended", 1);
    }
    Lose("the ranks of another node did not end in time", 1);
  }

  bool EveryRankEndedWell() const {
    return !ranks_.empty() && std::all_of(ranks_.begin(), ranks_.end(),
                                          [](const auto& rank) { return rank.ended_well(); });
  }

  // All local ranks have ended with 0: the group has, when the other nodes' have too.
  void EndWell() {
    if (link_ != nullptr) {
      if (!told_done_) link_->Send({NodeMessage::Type::kRanksDone, ""});
      told_done_ = true;
      if (Now() >= exit_deadline_) Lose("the ranks of another node did not end in time", 1);
      return;
    }
    if (server_ != nullptr) {
      for (size_t node = 1; node < node_done_.size(); ++node) {
        if (node_done_[node]) continue;
        if (Now() >= exit_deadline_) Lose(fmt::format("node {} did not end in time", node), 1);
        return;
      }
      server_->SendToNodes({NodeMessage::Type::kEnd, ""});
    }
    LOG_INFO("every rank has ended well");
    Finish(0);
  }

  // What happens.

  void OnSignal() {
    while (signals_.Take()) {
      if (ranks_.empty()) {
        LOG_INFO("stopped before the group was complete");
        Finish(0);
      } else if (stopping_) {
        LOG_WARN("asked to stop a second time: killing every rank");
        Lose("it was stopped a second time", 1);
        KillAll();
      } else {
        Stop();
      }
    }
  }

  void Stop() {
    if (stopping_) return;
    stopping_ = true;
    if (options_.stop_timeout > Duration(0)) {
      kill_at_ = Now() + options_.stop_timeout;
    }
    if (link_ != nullptr) {
      link_->Send({NodeMessage::Type::kStopRequest, ""});
      return;
    }
    LOG_INFO("stopping: rank 0 drains");
    if (!ranks_.empty()) ranks_[0].Signal(SIGTERM);
  }

  void OnExit(size_t index) {
    RankProcess& rank = ranks_[index];
    if (!rank.Reap()) return;
    loop_.Forget(rank.pidfd());
    loop_.Forget(rank.control_fd());
    if (!lost_ && !rank.ended_well()) LOG_ERROR("{}", rank.HowEnded());
    ended_.push_back(index);
  }

  // Node 0: news of another node.
  void OnNode(int node, const NodeMessage& message) {
    switch (message.type) {
      case NodeMessage::Type::kStopRequest:
        LOG_INFO("node {} asks the group to stop", node);
        return Stop();
      case NodeMessage::Type::kRanksDone:
        node_done_[static_cast<size_t>(node)] = true;
        if (exit_deadline_ == kNever) exit_deadline_ = Now() + options_.exit_grace;
        return;
      case NodeMessage::Type::kLost:
        if (ranks_.empty()) {  // not begun yet: it may come back
          LOG_WARN("node {} left before the group was complete: {}", node, message.text);
          return;
        }
        return Lose(fmt::format("node {}: {}", node, message.text), 1);
      default:
        return;
    }
  }

  // Other nodes: news of node 0.
  void OnFirstNode(const NodeMessage& message) {
    switch (message.type) {
      case NodeMessage::Type::kStart:
        start_ranks_ = true;
        return;
      case NodeMessage::Type::kLost:
        loop_.Forget(link_->fd());
        return Lose(fmt::format("node 0: {}", message.text), 1);
      case NodeMessage::Type::kEnd:
        if (EveryRankEndedWell()) {
          LOG_INFO("every rank has ended well");
          return Finish(0);
        }
        return Lose("the group has ended", 0);
      default:
        return;
    }
  }

  // The end.

  // Something of the group is gone, so all of it goes: survivors are told why, have a moment to
  // fail their requests, and are killed.
  void Lose(const std::string& reason, int code) {
    if (lost_ || exit_code_) return;
    lost_ = true;
    lost_code_ = code;
    if (code != 0) LOG_ERROR("the group is lost: {}", reason);
    if (server_ != nullptr) {
      server_->SendToNodes(code != 0 ? NodeMessage{NodeMessage::Type::kLost, reason}
                                     : NodeMessage{NodeMessage::Type::kEnd, ""});
    }
    if (link_ != nullptr) link_->Send({NodeMessage::Type::kLost, reason});
    for (RankProcess& rank : ranks_) rank.TellLoss(reason);
    kill_at_ = Now() + (code != 0 ? options_.loss_grace : Duration(0));
  }

  void KillAll() {
    if (!lost_) Lose("its ranks did not stop in time", 1);
    for (RankProcess& rank : ranks_) rank.Signal(SIGKILL);
    kill_at_ = kNever;
    reap_deadline_ = std::min(reap_deadline_, Now() + kReapTimeout);
  }

  void FinishIfReaped(TimePoint now) {
    const bool any =
        std::any_of(ranks_.begin(), ranks_.end(), [](const auto& rank) { return rank.running(); });
    if (!any) return Finish(lost_code_);
    if (now < reap_deadline_) return;
    LOG_ERROR("killed ranks have not gone: {}", ranks_[0].HowEnded());
    Finish(1);
  }

  void Finish(int code) {
    if (!exit_code_) exit_code_ = code;
  }

  const GroupOptions options_;
  const std::span<char* const> argv_;
  EventLoop loop_;
  StopSignals signals_;
  RankIdentity identity_;
  std::vector<RankProcess> ranks_;
  std::unique_ptr<RendezvousServer> server_;  // node 0, if there is anybody to meet
  std::unique_ptr<NodeLink> link_;            // other nodes
  std::vector<bool> node_done_;
  std::vector<size_t> ended_;  // not judged yet
  TimePoint judge_at_ = kNever;
  bool start_ranks_ = false;
  bool stopping_ = false;
  bool told_done_ = false;
  bool lost_ = false;
  int lost_code_ = 1;
  std::optional<int> exit_code_;
  TimePoint last_turn_ = Now();
  TimePoint next_beat_{};
  TimePoint next_warning_{};
  TimePoint exit_deadline_ = kNever;
  TimePoint kill_at_ = kNever;
  TimePoint reap_deadline_ = kNever;
};

}  // namespace

int RunSupervisor(const GroupOptions& options, std::span<char* const> argv) {
  const absl::Status valid = ValidateGroupOptions(options);
  if (!valid.ok()) {
    LOG_ERROR("{}", std::string(valid.message()));
    return 2;
  }
  return Supervisor(options, argv).Run();
}

}  // namespace qserve::worker::group
