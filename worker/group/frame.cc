#include "worker/group/frame.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <limits>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/group/wire.h"

namespace qserve::worker::group {
namespace {
constexpr size_t kHeaderBytes = 4;
}  // namespace

std::string Frame(std::string_view payload) {
  QSERVE_CHECK(payload.size() <= std::numeric_limits<uint32_t>::max());
  WireWriter writer;
  writer.Bytes(payload);
  return writer.Take();
}

absl::Status FrameReader::ReadFrom(int fd) {
  std::array<char, 65536> chunk;
  const ssize_t got = recv(fd, chunk.data(), chunk.size(), 0);
  if (got > 0) {
    buffer_.append(chunk.data(), static_cast<size_t>(got));
    return absl::OkStatus();
  }
  if (got == 0) return absl::UnavailableError("the peer closed the connection");
  if (errno == EAGAIN || errno == EINTR) return absl::OkStatus();
  return ErrnoStatus("receive", errno);
}

absl::StatusOr<std::optional<std::string>> FrameReader::Next() {
  const std::string_view rest = std::string_view(buffer_).substr(begin_);
  if (rest.size() < kHeaderBytes) return std::nullopt;
  const size_t size = WireReader(rest.substr(0, kHeaderBytes)).U32();
  if (size > max_payload_) {
    return absl::InvalidArgumentError(
        fmt::format("a message of {} bytes, at most {} are allowed", size, max_payload_));
  }
  if (rest.size() - kHeaderBytes < size) return std::nullopt;
  std::optional<std::string> payload(std::string(rest.substr(kHeaderBytes, size)));
  begin_ += kHeaderBytes + size;
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  } else if (begin_ > buffer_.size() / 2) {
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  return payload;
}

absl::Status FrameChannel::Send(std::string_view payload, TimePoint deadline) {
  return SendAll(fd_.get(), Frame(payload), deadline, wake_fd_);
}

absl::StatusOr<std::string> FrameChannel::Receive(TimePoint deadline) {
  while (true) {
    ASSIGN_OR_RETURN(std::optional<std::string> payload, reader_.Next());
    if (payload.has_value()) return *std::move(payload);
    RETURN_IF_ERROR(WaitFor(fd_.get(), POLLIN, deadline, wake_fd_));
    RETURN_IF_ERROR(reader_.ReadFrom(fd_.get()));
  }
}

}  // namespace qserve::worker::group
