// Memory that the processes of one host share for the collectives of a group: a counter and two
// buffers a rank. Made and mapped by shared_memory_communicator.cc; the kernel takes it back when
// the last process has gone, since its name is removed as soon as everybody has it mapped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace qserve::worker::comm {

// One writer, its rank; on cache lines of its own, as everybody watches it.
struct alignas(128) RankCounter {
  std::atomic<uint32_t> turn = 0;      // the last one published
  std::atomic<uint32_t> sleepers = 0;  // ranks that sleep until `turn` changes
  std::atomic<int32_t> pid = 0;
  std::atomic<bool> aborted = false;
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

class SharedSegment {
 public:
  // A new one with a name nobody can guess. ResourceExhausted where the memory is not there.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Create(int ranks, int64_t buffer_bytes);
  // Somebody else's. NotFound on another host (or in another container); FailedPrecondition for
  // what is not such a segment, not this user's or of another size.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Open(const std::string& name, int ranks,
                                                             int64_t buffer_bytes);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;

  const std::string& name() const { return name_; }
  void RemoveName();  // mappings stay

  RankCounter& counter(int rank) { return counters_[rank]; }
  float* buffer(int rank, uint32_t turn) {
    return buffers_ + (2 * rank + static_cast<int>(turn % 2)) * buffer_floats_;
  }
  int64_t buffer_floats() const { return buffer_floats_; }

 private:
  SharedSegment(std::string name, void* memory, int ranks, int64_t buffer_bytes);

  std::string name_;
  bool named_ = false;
  void* memory_;
  int64_t bytes_;
  RankCounter* counters_;
  float* buffers_;
  int64_t buffer_floats_;
};

}  // namespace qserve::worker::comm
