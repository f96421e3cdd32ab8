// A file that is read here and there, a little at a time, without mapping it: none of it counts as
// this process' memory, and bytes that cannot be read, or are there no more, are an error and not a
// signal. Const methods may be called from several threads.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace qserve {

// Which file it is, not where: one that has replaced another under its path is a different one.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const FileIdentity&) const = default;
};

class RandomAccessFile {
 public:
  // NotFound, PermissionDenied or InvalidArgument (not a regular file) by name.
  static absl::StatusOr<RandomAccessFile> Open(const std::string& path);

  const FileIdentity& identity() const { return identity_; }
  int64_t size() const { return size_; }  // when it was opened
  int fd() const { return fd_.get(); }

  // Fills `to` with the bytes from `offset` on. DataLoss where the file ends before; what the
  // system says where it cannot read.
  absl::Status Read(int64_t offset, std::span<std::byte> to) const;

  // Asks the system to bring these bytes into its page cache and, from then on, never more of the
  // file than is read. A wish: without it reading is only slower.
  void Prefetch(int64_t offset, int64_t bytes) const;

 private:
  RandomAccessFile(UniqueFd fd, FileIdentity identity, int64_t size)
      : fd_(std::move(fd)), identity_(identity), size_(size) {}

  UniqueFd fd_;
  FileIdentity identity_;
  int64_t size_ = 0;
};

}  // namespace qserve
