// Ranks as threads of one process: collectives over the memory they share. For tests of the model
// and the executor, and below HostStagedCommunicator where several ranks of one process share a
// GPU. Each rank's executor thread calls its own communicator.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace qserve::worker::comm {

// What the ranks of a group share; outlives their communicators. Thread-safe.
class ThreadHub {
 public:
  explicit ThreadHub(int size) : pointers_(static_cast<size_t>(size)) {}
  int size() const { return static_cast<int>(pointers_.size()); }

  // Publishes this rank's `pointer` and waits until every rank has published; fills `all` in rank
  // order. False: aborted.
  bool Exchange(int rank, const void* pointer, std::vector<const void*>* all);
  // Waits until every rank has come. False: aborted.
  bool Barrier();
  // Pending and later waits return false. Any thread.
  void Abort();

 private:
  bool Arrive(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<const void*> pointers_;
  int arrived_ = 0;
  uint64_t round_ = 0;
  bool aborted_ = false;
};

class ThreadCommunicator final : public Communicator {
 public:
  // `backend`'s memory must be host memory (the CPU backend, or buffers of HostStagedCommunicator).
  // Both outlive it.
  ThreadCommunicator(ThreadHub* hub, int rank, kernels::Backend* backend)
      : hub_(hub), rank_(rank), backend_(backend) {}
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override;
  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override;
  void BroadcastIds(int32_t* ids, int64_t count) override;
  void Abort() override { hub_->Abort(); }

 private:
  void FailAborted();

  ThreadHub* hub_;
  int rank_;
  kernels::Backend* backend_;
  std::vector<float> mine_;
  std::vector<float> sum_;
};

}  // namespace qserve::worker::comm
