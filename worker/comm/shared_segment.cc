#include "worker/comm/shared_segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "common/entropy.h"
#include "worker/group/socket.h"

namespace qserve::worker::comm {
namespace {

constexpr std::string_view kNamePrefix = "/qserve-";

int64_t Bytes(int ranks, int64_t buffer_bytes) {
  return ranks * (static_cast<int64_t>(sizeof(RankCounter)) + 2 * buffer_bytes);
}

absl::Status Error(absl::StatusCode code, const std::string& what) {
  return absl::Status(code, fmt::format("{}: {}", what, std::strerror(errno)));
}

absl::StatusOr<void*> Map(int fd, int64_t bytes) {
  void* memory =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return Error(absl::StatusCode::kResourceExhausted, "shared memory cannot be mapped");
  }
  return memory;
}

// What came from another process names a segment and nothing else.
bool IsSegmentName(std::string_view name) {
  return name.starts_with(kNamePrefix) && name.size() <= 64 &&
         name.find_first_not_of("0123456789abcdef", kNamePrefix.size()) == name.npos;
}

}  // namespace

SharedSegment::SharedSegment(std::string name, void* memory, int ranks, int64_t buffer_bytes)
    : name_(std::move(name)),
      memory_(memory),
      bytes_(Bytes(ranks, buffer_bytes)),
      counters_(static_cast<RankCounter*>(memory)),
      buffers_(reinterpret_cast<float*>(counters_ + ranks)),
      buffer_floats_(buffer_bytes / static_cast<int64_t>(sizeof(float))) {}

SharedSegment::~SharedSegment() {
  RemoveName();
  munmap(memory_, static_cast<size_t>(bytes_));
}

void SharedSegment::RemoveName() {
  if (std::exchange(named_, false)) shm_unlink(name_.c_str());
}

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Create(int ranks,
                                                                     int64_t buffer_bytes) {
  const std::string name = std::string(kNamePrefix) + DrawId();
  const UniqueFd file(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() < 0) {
    return Error(absl::StatusCode::kResourceExhausted, "shared memory cannot be made");
  }
  const int64_t bytes = Bytes(ranks, buffer_bytes);
  // Allocated now: where the file system is full, a later access would end the process.
  absl::StatusOr<void*> memory = nullptr;
  if (const int error = posix_fallocate(file.get(), 0, bytes); error != 0) {
    errno = error;
    memory = Error(absl::StatusCode::kResourceExhausted,
                   fmt::format("{} bytes of shared memory are not to be had", bytes));
  } else {
    memory = Map(file.get(), bytes);
  }
  if (!memory.ok()) {
    shm_unlink(name.c_str());
    return memory.status();
  }
  for (int r = 0; r < ranks; ++r) new (static_cast<RankCounter*>(*memory) + r) RankCounter;
  auto segment =
      std::unique_ptr<SharedSegment>(new SharedSegment(name, *memory, ranks, buffer_bytes));
  segment->named_ = true;
  return segment;
}

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Open(const std::string& name,
                                                                   int ranks,
                                                                   int64_t buffer_bytes) {
  if (!IsSegmentName(name)) return absl::FailedPreconditionError("no name of a shared segment");
  const UniqueFd file(shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0));
  if (file.get() < 0) return Error(absl::StatusCode::kNotFound, "no such shared memory here");
  struct stat status = {};
  if (fstat(file.get(), &status) != 0 || status.st_uid != geteuid() ||
      status.st_size != Bytes(ranks, buffer_bytes)) {
    return absl::FailedPreconditionError("not the shared memory of this group");
  }
  auto memory = Map(file.get(), status.st_size);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<SharedSegment>(new SharedSegment(name, *memory, ranks, buffer_bytes));
}

}  // namespace qserve::worker::comm
