#include "worker/group/rendezvous_client.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>

#include "common/status_macros.h"

namespace qserve::worker::group {
namespace {

// What an answer may take beyond the time that the server was asked to wait.
constexpr Duration kAnswerTimeout = std::chrono::seconds(20);
constexpr Duration kRetryPause = std::chrono::milliseconds(200);

}  // namespace

absl::StatusOr<std::unique_ptr<RendezvousClient>> RendezvousClient::Create(
    const Endpoint& rendezvous, const Hello& hello, TimePoint deadline) {
  ASSIGN_OR_RETURN(UniqueFd wake_fd, NewWakeFd());
  while (true) {
    absl::StatusOr<FrameChannel> channel =
        SayHello(rendezvous, hello, kMaxFrameBytes, deadline, wake_fd.get(), nullptr);
    if (channel.ok()) {
      return std::unique_ptr<RendezvousClient>(
          new RendezvousClient(std::move(wake_fd), *std::move(channel)));
    }
    const bool retry = absl::IsUnavailable(channel.status()) &&
                       std::chrono::steady_clock::now() + kRetryPause < deadline;
    if (!retry) return channel.status();
    const TimePoint pause_end = std::chrono::steady_clock::now() + kRetryPause;
    const absl::Status paused = WaitFor(-1, 0, pause_end, wake_fd.get());
    if (absl::IsCancelled(paused)) return paused;
  }
}

absl::StatusOr<FrameType> RendezvousClient::Ask(const std::string& request, Duration timeout,
                                                std::string* text) {
  const TimePoint deadline = std::chrono::steady_clock::now() + timeout + kAnswerTimeout;
  RETURN_IF_ERROR(channel_.Send(request, deadline));
  ASSIGN_OR_RETURN(const std::string answer, channel_.Receive(deadline));
  WireReader reader(answer);
  const auto type = static_cast<FrameType>(reader.U8());
  if (type == FrameType::kValue || type == FrameType::kFull) *text = reader.Bytes(kMaxValueBytes);
  if (!reader.complete()) return absl::UnavailableError("the rendezvous sent something malformed");
  return type;
}

absl::Status RendezvousClient::Set(const std::string& key, const std::string& value) {
  if (key.empty() || key.size() > kMaxKeyBytes || value.size() > kMaxValueBytes) {
    return absl::InvalidArgumentError(
        fmt::format("a rendezvous key of {} bytes with a value of {}", key.size(), value.size()));
  }
  WireWriter writer;
  writer.U8(static_cast<uint8_t>(FrameType::kSet));
  writer.Bytes(key);
  writer.Bytes(value);
  std::string text;
  ASSIGN_OR_RETURN(const FrameType type, Ask(writer.Take(), Duration(0), &text));
  if (type == FrameType::kFull) return absl::ResourceExhaustedError(text);
  if (type != FrameType::kDone) return absl::UnavailableError("the rendezvous answered wrongly");
  return absl::OkStatus();
}

absl::StatusOr<std::string> RendezvousClient::Get(const std::string& key, Duration timeout) {
  if (key.empty() || key.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(fmt::format("a rendezvous key of {} bytes", key.size()));
  }
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(std::max(timeout, Duration(0)));
  WireWriter writer;
  writer.U8(static_cast<uint8_t>(FrameType::kGet));
  writer.Bytes(key);
  writer.U64(static_cast<uint64_t>(wait.count()));
  std::string text;
  ASSIGN_OR_RETURN(const FrameType type, Ask(writer.Take(), wait, &text));
  if (type == FrameType::kTimedOut) {
    return absl::DeadlineExceededError(
        fmt::format("nobody set '{}' within {:.1f} s", key, ToSeconds(timeout)));
  }
  if (type != FrameType::kValue) return absl::UnavailableError("the rendezvous answered wrongly");
  return text;
}

}  // namespace qserve::worker::group
