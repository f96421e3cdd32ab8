// What stands between a communicator of GPUs and NCCL: whose turn it is to call, whether the group
// has failed, and the two threads that find out. One of them asks NCCL and CUDA, which may hang
// with the driver; the other asks nobody, keeps the time and aborts, so that no hung call can keep
// an abort from happening. Owned by the NcclCommunicator.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "common/clock.h"
#include "kernels/cuda/cuda_stream.h"
#include "worker/comm/nccl_api.h"

namespace qserve::worker::comm {

struct NcclWatchOptions {
  int rank = 0;
  Duration step_timeout = std::chrono::minutes(10);  // between two marks
  Duration interval = std::chrono::milliseconds(100);
  // How long an abort or a good-bye waits for a call that another thread is in.
  Duration courtesy = std::chrono::seconds(1);
};

class NcclWatch {
 public:
  // Both must outlive it.
  NcclWatch(const NcclWatchOptions& options, kernels::cuda::CudaStreamOwner* owner, NcclApi* api)
      : options_(options), owner_(owner), api_(api) {}
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;
  // Close must have been called after Begin.
  ~NcclWatch() = default;

  // Once connected.
  void Begin();
  // Disconnects in good order unless the group has failed, and ends the threads. Nothing is called
  // afterwards. Graphs that hold NCCL's work must be gone.
  void Close();
  bool begun() const { return guard_.joinable(); }

  // NCCL lets one thread at a time call. Waits for the turn; false, and no turn, after a failure.
  // Whoever has the turn calls NcclApi and gives the turn back by Leave.
  bool Enter();
  void Leave();

  // Fails the step and has what runs on the device ended. The first reason stays. Any thread; never
  // waits for a call under way.
  void Break(const std::string& reason);
  // Empty: all is well.
  std::string failure() const;

  // A mark may be placed: the last one has been reached. By the thread that has the turn.
  bool MayMark() const;
  void MarkPlaced();

 private:
  void Ask();
  void Guard();
  // What is wrong with the group, or nothing.
  std::string Trouble();
  void End();
  bool Over() const { return stopping_ || !failure_.empty(); }  // under the mutex
  void BreakLocked(const std::string& reason);

  const NcclWatchOptions options_;
  kernels::cuda::CudaStreamOwner* const owner_;
  NcclApi* const api_;

  // Never held while api_ is called.
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // failure_, stopping_
  std::condition_variable free_;     // calling_, for those counted in waiting_
  std::string failure_;
  bool stopping_ = false;
  bool calling_ = false;
  int waiting_ = 0;
  bool mark_pending_ = false;
  TimePoint mark_placed_;

  std::thread asker_;
  std::thread guard_;
};

}  // namespace qserve::worker::comm
