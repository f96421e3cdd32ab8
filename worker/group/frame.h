// Messages over a TCP stream: a length of four bytes, little-endian, then that many bytes.
// FrameReader is for event loops, FrameChannel for a thread that may wait. Used by the rendezvous
// and by worker/comm's host group.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

// `payload` with its length in front. At most 4 GiB - 1 (checked).
std::string Frame(std::string_view payload);

// Cuts a stream into messages. Holds only what has arrived, whatever length a peer announces. One
// thread.
class FrameReader {
 public:
  explicit FrameReader(size_t max_payload) : max_payload_(max_payload) {}
  // Reads once what `fd` has. Unavailable at the end of the stream or on a socket error; OK with
  // nothing new is possible.
  absl::Status ReadFrom(int fd);
  // The next whole message, nullopt if it has not all arrived; InvalidArgument if it is longer than
  // allowed.
  absl::StatusOr<std::optional<std::string>> Next();
  void set_max_payload(size_t max_payload) { max_payload_ = max_payload; }

 private:
  size_t max_payload_;
  std::string buffer_;
  size_t begin_ = 0;  // consumed part of buffer_
};

// A connected socket with messages. One thread at a time sends and receives; `wake_fd` (not owned,
// -1: none) cancels.
class FrameChannel {
 public:
  FrameChannel(UniqueFd fd, size_t max_payload, int wake_fd)
      : fd_(std::move(fd)), reader_(max_payload), wake_fd_(wake_fd) {}
  int fd() const { return fd_.get(); }
  FrameReader& reader() { return reader_; }
  void set_wake_fd(int wake_fd) { wake_fd_ = wake_fd; }
  absl::Status Send(std::string_view payload, TimePoint deadline);
  absl::StatusOr<std::string> Receive(TimePoint deadline);

 private:
  UniqueFd fd_;
  FrameReader reader_;
  int wake_fd_;
};

}  // namespace qserve::worker::group
