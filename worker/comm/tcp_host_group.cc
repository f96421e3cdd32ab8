#include "worker/comm/tcp_host_group.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/group/frame.h"
#include "worker/group/hello.h"
#include "worker/group/socket.h"

namespace qserve::worker::comm {
namespace {

using group::FrameChannel;

constexpr std::string_view kAddressKey = "host_group/address";
constexpr Duration kHelloTimeout = std::chrono::seconds(5);
constexpr size_t kMaxStrangers = 256;

// The first byte of every message says which call it belongs to, so that ranks that have lost step
// notice it.
constexpr char kBroadcast = 'B';
constexpr char kGather = 'G';
constexpr char kBarrier = 'W';

TimePoint Now() { return std::chrono::steady_clock::now(); }

absl::Status FromRank(int rank, const absl::Status& status) {
  if (absl::IsCancelled(status)) return absl::CancelledError("the host group was aborted");
  return absl::UnavailableError(fmt::format("rank {}: {}", rank, std::string(status.message())));
}

class TcpHostGroup final : public HostGroup {
 public:
  // `peers`: on rank 0 those of ranks 1, 2, ...; elsewhere rank 0's.
  TcpHostGroup(const TcpHostGroupOptions& options, UniqueFd wake_fd,
               std::vector<FrameChannel> peers)
      : options_(options), wake_fd_(std::move(wake_fd)), peers_(std::move(peers)) {}

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  absl::Status Broadcast(const std::string& bytes) override {
    if (rank() != 0) return absl::FailedPreconditionError("only rank 0 broadcasts");
    return SendToFollowers(kBroadcast, bytes);
  }

  absl::StatusOr<std::string> ReceiveBroadcast() override {
    if (rank() == 0) return absl::FailedPreconditionError("rank 0 receives no broadcasts");
    return ReceiveFromLeader(kBroadcast, kNever);
  }

  absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) override {
    if (rank() == 0) return ReceiveFromFollowers(kGather, bytes);
    RETURN_IF_ERROR(SendToLeader(kGather, bytes));
    return std::vector<std::string>();
  }

  absl::Status Barrier() override {
    if (rank() == 0) {
      RETURN_IF_ERROR(ReceiveFromFollowers(kBarrier, {}).status());
      return SendToFollowers(kBarrier, {});
    }
    RETURN_IF_ERROR(SendToLeader(kBarrier, {}));
    return ReceiveFromLeader(kBarrier, Now() + options_.timeout).status();
  }

  void Abort() override {
    aborted_ = true;
    group::SignalWakeFd(wake_fd_.get());
    // The peers see the end of the stream. The descriptors stay open until destruction: another
    // thread may be using them.
    for (const FrameChannel& peer : peers_) shutdown(peer.fd(), SHUT_RDWR);
  }

 private:
  absl::Status Usable(size_t message_bytes) const {
    if (aborted_) return absl::CancelledError("the host group was aborted");
    if (message_bytes + 1 > options_.max_message_bytes) {
      return absl::InvalidArgumentError(fmt::format("a message of {} bytes, at most {} are allowed",
                                                    message_bytes, options_.max_message_bytes - 1));
    }
    return absl::OkStatus();
  }
  absl::Status Explain(int rank, const absl::Status& status) const {
    if (status.ok()) return status;
    return FromRank(rank, aborted_ ? absl::CancelledError("") : status);
  }

  absl::Status SendToFollowers(char call, const std::string& bytes) {
    RETURN_IF_ERROR(Usable(bytes.size()));
    const std::string message = call + bytes;
    const TimePoint deadline = Now() + options_.timeout;
    for (size_t i = 0; i < peers_.size(); ++i) {
      // A first send to a process that is gone would succeed, so its end of the stream is looked
      // for.
      char byte = 0;
      absl::Status status;
      if (recv(peers_[i].fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
        status = absl::UnavailableError("it closed the connection");
      } else {
        status = peers_[i].Send(message, deadline);
      }
      RETURN_IF_ERROR(Explain(static_cast<int>(i) + 1, status));
    }
    return absl::OkStatus();
  }

  absl::Status SendToLeader(char call, const std::string& bytes) {
    RETURN_IF_ERROR(Usable(bytes.size()));
    return Explain(0, peers_[0].Send(call + bytes, Now() + options_.timeout));
  }

  absl::StatusOr<std::string> ReceiveFromLeader(char call, TimePoint deadline) {
    RETURN_IF_ERROR(Usable(0));
    absl::StatusOr<std::string> message = peers_[0].Receive(deadline);
    if (!message.ok()) return Explain(0, message.status());
    return Body(0, call, *message);
  }

  absl::StatusOr<std::string> Body(int from, char call, const std::string& message) const {
    const char met = message.empty() ? '?' : message.front();
    if (met != call) {
      return absl::UnavailableError(
          fmt::format("rank {} is out of step: call '{}' met '{}'", from, call, met));
    }
    return message.substr(1);
  }

  // One message of every follower, in rank order after `own`. All are watched at once, so that any
  // one's end is seen at once.
  absl::StatusOr<std::vector<std::string>> ReceiveFromFollowers(char call, std::string own) {
    RETURN_IF_ERROR(Usable(own.size()));
    const TimePoint deadline = Now() + options_.timeout;
    std::vector<std::string> all(static_cast<size_t>(size()));
    all[0] = std::move(own);
    std::vector<bool> have(peers_.size());
    while (true) {
      std::vector<pollfd> polled{{wake_fd_.get(), POLLIN, 0}};
      for (size_t i = 0; i < peers_.size(); ++i) {
        if (have[i]) continue;
        const int from = static_cast<int>(i) + 1;
        absl::StatusOr<std::optional<std::string>> next = peers_[i].reader().Next();
        if (!next.ok()) return Explain(from, next.status());
        if (!next->has_value()) {
          polled.push_back({peers_[i].fd(), POLLIN, 0});
          continue;
        }
        ASSIGN_OR_RETURN(all[i + 1], Body(from, call, **std::move(next)));
        have[i] = true;
      }
      if (polled.size() == 1) return all;
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Now());
      if (left.count() <= 0) return absl::UnavailableError("a rank did not come in time");
      if (poll(polled.data(), polled.size(), static_cast<int>(left.count())) < 0) continue;
      if (aborted_) return absl::CancelledError("the host group was aborted");
      RETURN_IF_ERROR(ReadPolled(polled));
    }
  }

  absl::Status ReadPolled(const std::vector<pollfd>& polled) {
    for (const pollfd& one : polled) {
      for (size_t i = 0; one.revents != 0 && i < peers_.size(); ++i) {
        if (peers_[i].fd() != one.fd) continue;
        RETURN_IF_ERROR(Explain(static_cast<int>(i) + 1, peers_[i].reader().ReadFrom(one.fd)));
      }
    }
    return absl::OkStatus();
  }

  const TcpHostGroupOptions options_;
  UniqueFd wake_fd_;
  std::vector<FrameChannel> peers_;
  std::atomic<bool> aborted_{false};
};

group::Hello MyHello(const TcpHostGroupOptions& options) {
  group::Hello hello;
  hello.role = group::Role::kRank;
  hello.index = static_cast<uint32_t>(options.rank);
  hello.count = static_cast<uint32_t>(options.size);
  hello.generation = options.generation;
  hello.secret = options.group_secret;
  hello.config_hash = options.config_hash;
  return hello;
}

// Rank 0's side of connecting: takes connections until every rank has proved itself; the rest are
// closed and harm nothing.
class Reception {
 public:
  Reception(const TcpHostGroupOptions& options, UniqueFd listener)
      : options_(options),
        listener_(std::move(listener)),
        joined_(static_cast<size_t>(options.size)) {}

  absl::StatusOr<std::vector<FrameChannel>> Run() {
    const TimePoint deadline = Now() + options_.connect_timeout;
    while (missing() > 0) {
      std::vector<pollfd> polled{{listener_.get(), POLLIN, 0}};
      for (const Stranger& stranger : strangers_) {
        polled.push_back({stranger.channel.fd(), POLLIN, 0});
      }
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Now());
      if (left.count() <= 0) {
        return absl::DeadlineExceededError(fmt::format(
            "{} of {} ranks did not join the host group in time", missing(), options_.size));
      }
      const int64_t wait_ms = std::min<int64_t>(left.count(), 500);
      if (poll(polled.data(), polled.size(), static_cast<int>(wait_ms)) < 0) continue;
      Listen(polled);
      if (polled[0].revents != 0) AcceptAll();
    }
    std::vector<FrameChannel> peers;
    for (size_t r = 1; r < joined_.size(); ++r) peers.push_back(*std::move(joined_[r]));
    return peers;
  }

 private:
  struct Stranger {
    FrameChannel channel;
    TimePoint deadline;
  };

  int missing() const {
    return static_cast<int>(std::count_if(joined_.begin() + 1, joined_.end(),
                                          [](const auto& peer) { return !peer.has_value(); }));
  }

  void AcceptAll() {
    for (auto fd = group::Accept(listener_.get()); fd.ok(); fd = group::Accept(listener_.get())) {
      if (strangers_.size() >= kMaxStrangers) continue;
      strangers_.push_back(
          {FrameChannel(*std::move(fd), group::kMaxHelloBytes, -1), Now() + kHelloTimeout});
    }
  }

  void Listen(const std::vector<pollfd>& polled) {
    std::vector<Stranger> kept;
    for (size_t i = 0; i < strangers_.size(); ++i) {
      if (Heard(strangers_[i], polled[i + 1].revents != 0))
        kept.push_back(std::move(strangers_[i]));
    }
    strangers_ = std::move(kept);
  }

  // False when the connection is to be forgotten: taken into the group, or closed.
  bool Heard(Stranger& stranger, bool readable) {
    if (!readable) return Now() < stranger.deadline;
    const absl::Status read = stranger.channel.reader().ReadFrom(stranger.channel.fd());
    absl::StatusOr<std::optional<std::string>> frame = stranger.channel.reader().Next();
    if (!frame.ok()) return false;
    if (!frame->has_value()) return read.ok();
    const std::optional<group::Hello> hello = group::DecodeHello(**frame);
    if (!hello.has_value()) return false;
    absl::Status checked = group::CheckHello(*hello, MyHello(options_));
    if (checked.ok() && (hello->index == 0 || joined_[hello->index].has_value())) {
      checked = absl::PermissionDeniedError(
          fmt::format("rank {} is in the host group already", hello->index));
    }
    if (!checked.ok()) {
      const std::string why(checked.message());
      LOG_WARN("host group: a connection was refused: {}", why);
      // Best effort: who does not read the reason does without.
      [[maybe_unused]] const absl::Status told =
          stranger.channel.Send(group::EncodeRefusal(false, why), Now());
      return false;
    }
    if (!stranger.channel.Send(group::EncodeWelcome({options_.generation, ""}), Now()).ok()) {
      return false;
    }
    stranger.channel.reader().set_max_payload(options_.max_message_bytes);
    joined_[hello->index] = std::move(stranger.channel);
    return false;
  }

  const TcpHostGroupOptions& options_;
  UniqueFd listener_;
  std::vector<Stranger> strangers_;
  std::vector<std::optional<FrameChannel>> joined_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HostGroup>> CreateTcpHostGroup(const TcpHostGroupOptions& options,
                                                              group::KeyValueStore* store) {
  QSERVE_CHECK(options.size > 0 && options.rank >= 0 && options.rank < options.size);
  ASSIGN_OR_RETURN(UniqueFd wake_fd, group::NewWakeFd());
  std::vector<FrameChannel> peers;
  if (options.rank == 0) {
    ASSIGN_OR_RETURN(UniqueFd listener, group::Listen({options.bind_host, 0}));
    ASSIGN_OR_RETURN(const group::Endpoint here, group::LocalEndpoint(listener.get()));
    RETURN_IF_ERROR(store->Set(std::string(kAddressKey), here.ToString()));
    ASSIGN_OR_RETURN(peers, Reception(options, std::move(listener)).Run());
    for (FrameChannel& peer : peers) peer.set_wake_fd(wake_fd.get());
  } else {
    ASSIGN_OR_RETURN(const std::string address,
                     store->Get(std::string(kAddressKey), options.connect_timeout));
    ASSIGN_OR_RETURN(const group::Endpoint leader, group::ParseEndpoint(address));
    ASSIGN_OR_RETURN(FrameChannel channel,
                     group::SayHello(leader, MyHello(options), options.max_message_bytes,
                                     Now() + options.connect_timeout, wake_fd.get(), nullptr));
    peers.push_back(std::move(channel));
  }
  return std::unique_ptr<HostGroup>(
      new TcpHostGroup(options, std::move(wake_fd), std::move(peers)));
}

}  // namespace qserve::worker::comm
