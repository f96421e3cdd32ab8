// The communicator of a group of one: nothing to add, nobody to tell. Made by worker/exec/rank.cc;
// the executor's thread calls.
#pragma once

#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace qserve::worker::comm {

class LocalCommunicator final : public Communicator {
 public:
  // `backend` must outlive it.
  explicit LocalCommunicator(kernels::Backend* backend) : backend_(backend) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  // Rounds by way of the host where the sum is not the partial itself.
  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override;
  // Copies by way of the host, since a backend has no copy of its own; nothing at all when `out` is
  // `local`.
  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override;
  void BroadcastIds(int32_t*, int64_t) override {}
  void Abort() override {}

 private:
  kernels::Backend* backend_;
};

}  // namespace qserve::worker::comm
