// A directory that appears whole or not at all: written under a temporary name beside it
// (`.NAME.partial-XXXXXX`), moved into place by Commit, removed again by the destructor otherwise.
// A process that is killed leaves it behind, without the lock (flock) that it held on it: the next
// Create of that NAME removes it. Used by writers of checkpoints; one thread at a time. Owns the
// temporary directory.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qserve::worker::checkpoint {

// Whether what is written must survive a power cut. Waiting for the disk takes most of the time of
// a fast writer.
enum class Durability { kSynced, kCached };

// A file being written. Errors name it; a full disk is ResourceExhausted.
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Create(const std::string& path,
                                           Durability durability = Durability::kSynced);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  absl::Status Write(std::span<const std::byte> bytes);
  // Flushes to the disk (kSynced) and closes.
  absl::Status Close();

 private:
  OutputFile(int fd, std::string path, Durability durability)
      : fd_(fd), path_(std::move(path)), durability_(durability) {}
  int fd_ = -1;
  std::string path_;
  Durability durability_ = Durability::kSynced;
};

class OutputDirectory {
 public:
  // AlreadyExists if `path` is anything but absent or an empty directory; parents are created, and
  // what dead writers of `path` left is removed. Where the file system has no locks, nothing is.
  static absl::StatusOr<std::unique_ptr<OutputDirectory>> Create(
      const std::string& path, Durability durability = Durability::kSynced);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  // Where the files go until Commit.
  const std::string& temporary_path() const { return temporary_; }
  Durability durability() const { return durability_; }
  absl::Status WriteFile(const std::string& name, const std::string& contents);
  // Copies a regular file; its name stays.
  absl::Status CopyFile(const std::string& source);
  // Moves everything to `path`. Nothing may be written afterwards.
  absl::Status Commit();

 private:
  OutputDirectory(std::string path, std::string temporary, int lock, Durability durability)
      : path_(std::move(path)),
        temporary_(std::move(temporary)),
        lock_(lock),
        durability_(durability) {}
  std::string path_;
  std::string temporary_;
  int lock_;  // the temporary directory, open and locked while this lives; -1 without locks
  Durability durability_;
  bool committed_ = false;
};

}  // namespace qserve::worker::checkpoint
