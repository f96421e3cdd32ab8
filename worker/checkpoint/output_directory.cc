// See output_directory.h.
#include "worker/checkpoint/output_directory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "common/mapped_file.h"
#include "common/status_macros.h"

namespace qserve::worker::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPattern = "XXXXXX";  // mkdtemp fills it in

absl::Status ErrnoStatus(int error, const std::string& what) {
  if (error == ENOSPC || error == EDQUOT) {
    return absl::ResourceExhaustedError(fmt::format("{}: the disk is full", what));
  }
  return absl::ErrnoToStatus(error, what);
}

// Makes what was renamed survive a power cut; best effort, some file systems do not sync
// directories.
void SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

absl::Status CheckVacant(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (error) return ErrnoStatus(error.value(), fmt::format("cannot look at {}", path.string()));
  const bool vacant = status.type() == fs::file_type::directory && fs::is_empty(path, error);
  if (vacant && !error) return absl::OkStatus();
  return absl::AlreadyExistsError(
      fmt::format("{} exists already and is not an empty directory", path.string()));
}

enum class Lock { kHeld, kTaken, kGone, kNone };  // kNone: it cannot be locked

// Opens and locks the directory `path`; `fd` is left open with kHeld only.
Lock LockDirectory(const std::string& path, int& fd) {
  fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? Lock::kGone : Lock::kNone;
  Lock lock = Lock::kHeld;
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    lock = errno == EWOULDBLOCK ? Lock::kTaken : Lock::kNone;
  } else {
    // Whoever held the lock until now may have moved or removed what was opened.
    struct stat opened{}, named{};
    const bool same = ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 &&
                      opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
    if (!same) lock = Lock::kGone;
  }
  if (lock != Lock::kHeld) ::close(std::exchange(fd, -1));
  return lock;
}

// Removes directories named `prefix` and the characters of mkdtemp whose makers are dead: they lock
// theirs.
void RemoveAbandoned(const fs::path& parent, const std::string& prefix) {
  std::error_code error;
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.size() == prefix.size() + kPattern.size())
      found.push_back(entry.path());
  }
  for (const fs::path& path : found) {
    int fd = -1;
    if (LockDirectory(path.string(), fd) != Lock::kHeld) continue;
    fs::remove_all(path, error);
    ::close(fd);
  }
}

}  // namespace

absl::StatusOr<OutputFile> OutputFile::Create(const std::string& path, Durability durability) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, fmt::format("cannot create {}", path));
  return OutputFile(fd, path, durability);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      durability_(other.durability_) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(durability_, other.durability_);
  return *this;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status OutputFile::Write(std::span<const std::byte> bytes) {
  constexpr size_t kMaxPiece = size_t{1} << 30;
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxPiece));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, fmt::format("cannot write {}", path_));
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Close() {
  const int fd = std::exchange(fd_, -1);
  int error = durability_ == Durability::kSynced && ::fsync(fd) != 0 ? errno : 0;
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error != 0) return ErrnoStatus(error, fmt::format("cannot write {}", path_));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<OutputDirectory>> OutputDirectory::Create(const std::string& path,
                                                                         Durability durability) {
  std::error_code error;
  fs::path target = fs::absolute(path, error).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // a slash at the end
  if (path.empty() || error || !target.has_filename()) {
    return absl::InvalidArgumentError(fmt::format("\"{}\" cannot be an output directory", path));
  }
  RETURN_IF_ERROR(CheckVacant(target));
  fs::create_directories(target.parent_path(), error);
  if (error) {
    return ErrnoStatus(error.value(),
                       fmt::format("cannot create {}", target.parent_path().string()));
  }
  const std::string prefix = fmt::format(".{}.partial-", target.filename().string());
  RemoveAbandoned(target.parent_path(), prefix);
  while (true) {
    std::string temporary = (target.parent_path() / (prefix + std::string(kPattern))).string();
    if (::mkdtemp(temporary.data()) == nullptr) {
      return ErrnoStatus(
          errno, fmt::format("cannot create a directory in {}", target.parent_path().string()));
    }
    // Somebody else's Create may have taken the new directory for an abandoned one.
    int fd = -1;
    const Lock lock = LockDirectory(temporary, fd);
    if (lock == Lock::kGone || lock == Lock::kTaken) continue;
    return std::unique_ptr<OutputDirectory>(
        new OutputDirectory(target.string(), std::move(temporary), fd, durability));
  }
}

OutputDirectory::~OutputDirectory() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

absl::Status OutputDirectory::WriteFile(const std::string& name, const std::string& contents) {
  ASSIGN_OR_RETURN(OutputFile file,
                   OutputFile::Create(fmt::format("{}/{}", temporary_, name), durability_));
  RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(contents))));
  return file.Close();
}

absl::Status OutputDirectory::CopyFile(const std::string& source) {
  ASSIGN_OR_RETURN(const MappedFile input, MappedFile::Open(source));
  const std::string name = fs::path(source).filename().string();
  ASSIGN_OR_RETURN(OutputFile file,
                   OutputFile::Create(fmt::format("{}/{}", temporary_, name), durability_));
  RETURN_IF_ERROR(file.Write(input.bytes()));
  return file.Close();
}

absl::Status OutputDirectory::Commit() {
  if (::chmod(temporary_.c_str(), 0755) != 0)
    return ErrnoStatus(errno, fmt::format("cannot change {}", temporary_));
  if (durability_ == Durability::kSynced) SyncDirectory(temporary_);
  // rename replaces an empty directory and nothing else, so a model that appeared meanwhile is
  // safe.
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR) {
      return absl::AlreadyExistsError(
          fmt::format("{} was created by somebody else meanwhile", path_));
    }
    return ErrnoStatus(errno, fmt::format("cannot move the result to {}", path_));
  }
  committed_ = true;
  if (durability_ == Durability::kSynced) SyncDirectory(fs::path(path_).parent_path().string());
  return absl::OkStatus();
}

}  // namespace qserve::worker::checkpoint
