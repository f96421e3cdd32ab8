#include "common/random_access_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace qserve {

absl::StatusOr<RandomAccessFile> RandomAccessFile::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path));
  if (!S_ISREG(info.st_mode))
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  return RandomAccessFile(std::move(fd), {info.st_dev, info.st_ino}, info.st_size);
}

absl::Status RandomAccessFile::Read(int64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(fd_.get(), to.data(), to.size(), offset);
    if (count == 0) {
      return absl::DataLossError(absl::StrCat("the file ends ", to.size(),
                                              " bytes before what is to be read: was it cut?"));
    }
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "cannot read the file");
    to = to.subspan(static_cast<size_t>(count));
    offset += count;
  }
  return absl::OkStatus();
}

void RandomAccessFile::Prefetch(int64_t offset, int64_t bytes) const {
  ::posix_fadvise(fd_.get(), offset, bytes, POSIX_FADV_WILLNEED);
  ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);
}

}  // namespace qserve
