#include "worker/comm/thread_communicator.h"

#include <algorithm>

#include "worker/comm/matrix_copy.h"

namespace qserve::worker::comm {

bool ThreadHub::Arrive(std::unique_lock<std::mutex>& lock) {
  if (aborted_) return false;
  if (++arrived_ == size()) {
    arrived_ = 0;
    ++round_;
    changed_.notify_all();
    return true;
  }
  const uint64_t round = round_;
  changed_.wait(lock, [&] { return round_ != round || aborted_; });
  return round_ != round;
}

bool ThreadHub::Exchange(int rank, const void* pointer, std::vector<const void*>* all) {
  std::unique_lock lock(mutex_);
  pointers_[static_cast<size_t>(rank)] = pointer;
  if (!Arrive(lock)) return false;
  // Nobody publishes again before the barrier that ends every collective, which this rank has not
  // reached yet.
  *all = pointers_;
  return true;
}

bool ThreadHub::Barrier() {
  std::unique_lock lock(mutex_);
  return Arrive(lock);
}

void ThreadHub::Abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  changed_.notify_all();
}

void ThreadCommunicator::FailAborted() {
  backend_->Fail({kernels::StatusCode::kDevice, "a collective of the group was aborted"});
}

void ThreadCommunicator::AllReduceSum(kernels::Matrix<const float> partial,
                                      kernels::FloatMatrix sum) {
  const int64_t count = partial.rows * partial.cols;
  if (count == 0) return;
  backend_->Synchronize();
  mine_.resize(static_cast<size_t>(count));
  sum_.resize(static_cast<size_t>(count));
  Pack(partial, mine_.data());
  std::vector<const void*> all;
  if (!hub_->Exchange(rank_, mine_.data(), &all)) return FailAborted();
  std::vector<const float*> inputs;
  for (const void* pointer : all) inputs.push_back(static_cast<const float*>(pointer));
  SumInRankOrder(inputs.data(), size(), count, sum_.data());
  // Others still read mine_ until here.
  if (!hub_->Barrier()) return FailAborted();
  Store(sum_.data(), sum);
}

void ThreadCommunicator::GatherColumns(kernels::Matrix<const float> local,
                                       kernels::Matrix<float> out) {
  if (local.rows * local.cols == 0) return;
  backend_->Synchronize();
  mine_.resize(static_cast<size_t>(local.rows * local.cols));
  Pack(local, mine_.data());
  std::vector<const void*> all;
  if (!hub_->Exchange(rank_, mine_.data(), &all)) return FailAborted();
  for (int r = 0; rank_ == 0 && r < size(); ++r) {
    const auto* theirs = static_cast<const float*>(all[static_cast<size_t>(r)]);
    Unpack(theirs, local.cols, r * local.cols, out);
  }
  if (!hub_->Barrier()) return FailAborted();
}

void ThreadCommunicator::BroadcastIds(int32_t* ids, int64_t count) {
  if (count == 0) return;
  backend_->Synchronize();
  std::vector<const void*> all;
  if (!hub_->Exchange(rank_, ids, &all)) return FailAborted();
  if (rank_ != 0) std::copy_n(static_cast<const int32_t*>(all[0]), count, ids);
  if (!hub_->Barrier()) return FailAborted();
}

}  // namespace qserve::worker::comm
