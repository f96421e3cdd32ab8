// Collectives of a device by way of the host: copy out, another communicator on host memory, copy
// back. For GPUs where NCCL cannot serve (several ranks on one GPU). Made by worker/exec/rank.cc;
// the executor's thread calls.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace qserve::worker::comm {

class HostStagedCommunicator final : public Communicator {
 public:
  // `inner` works on host memory and latches its failures in `backend`, which must outlive both.
  HostStagedCommunicator(kernels::Backend* backend, std::unique_ptr<Communicator> inner)
      : backend_(backend), inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override;
  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override;
  void BroadcastIds(int32_t* ids, int64_t count) override;
  bool WaitsForDevice() const override { return true; }
  void Abort() override { inner_->Abort(); }

 private:
  // Device rows into a packed host matrix over `buffer`, and back.
  kernels::Matrix<float> FromDevice(kernels::Matrix<const float> device,
                                    std::vector<float>* buffer);
  void ToDevice(kernels::Matrix<float> host, kernels::FloatMatrix device);

  kernels::Backend* backend_;
  std::unique_ptr<Communicator> inner_;
  std::vector<float> local_;
  std::vector<float> gathered_;
  std::vector<uint16_t> rounded_;
  std::vector<int32_t> ids_;
};

}  // namespace qserve::worker::comm
