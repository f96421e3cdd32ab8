#include "worker/comm/host_staged_communicator.h"

#include <cstddef>

#include "worker/comm/matrix_copy.h"

namespace qserve::worker::comm {

kernels::Matrix<float> HostStagedCommunicator::FromDevice(kernels::Matrix<const float> device,
                                                          std::vector<float>* buffer) {
  const int64_t count = device.rows * device.cols;
  buffer->resize(static_cast<size_t>(count));
  const kernels::Matrix<float> host{buffer->data(), device.rows, device.cols, device.cols};
  const auto float_bytes = static_cast<int64_t>(sizeof(float));
  if (IsContiguous(device)) {
    backend_->CopyToHost(host.data, device.data, count * float_bytes);
    return host;
  }
  for (int64_t r = 0; r < device.rows; ++r) {
    backend_->CopyToHost(host.row(r), device.row(r), device.cols * float_bytes);
  }
  return host;
}

void HostStagedCommunicator::ToDevice(kernels::Matrix<float> host, kernels::FloatMatrix device) {
  const int64_t element = kernels::BytesOf(device.type);
  const void* values = host.data;
  if (device.type != kernels::FloatType::kF32) {
    rounded_.resize(static_cast<size_t>(host.rows * host.cols));
    Store(host.data, {rounded_.data(), device.type, host.rows, host.cols, host.cols});
    values = rounded_.data();
  }
  const int64_t row_bytes = host.cols * element;
  if (device.stride == device.cols || device.rows <= 1) {
    backend_->CopyToDevice(device.data, values, device.rows * row_bytes);
    return;
  }
  for (int64_t r = 0; r < device.rows; ++r) {
    backend_->CopyToDevice(static_cast<std::byte*>(device.data) + r * device.stride * element,
                           static_cast<const std::byte*>(values) + r * row_bytes, row_bytes);
  }
}

void HostStagedCommunicator::AllReduceSum(kernels::Matrix<const float> partial,
                                          kernels::FloatMatrix sum) {
  if (partial.rows * partial.cols == 0) return;
  const kernels::Matrix<float> host = FromDevice(partial, &local_);
  inner_->AllReduceSumInPlace(host);
  ToDevice(host, sum);
}

void HostStagedCommunicator::GatherColumns(kernels::Matrix<const float> local,
                                           kernels::Matrix<float> out) {
  if (local.rows * local.cols == 0) return;
  const kernels::Matrix<float> host = FromDevice(local, &local_);
  kernels::Matrix<float> gathered;
  if (rank() == 0) {
    const int64_t cols = local.cols * size();
    gathered_.resize(static_cast<size_t>(local.rows * cols));
    gathered = {gathered_.data(), local.rows, cols, cols};
  }
  inner_->GatherColumns({host.data, host.rows, host.cols, host.stride}, gathered);
  if (rank() == 0) {
    ToDevice(gathered, kernels::Matrix<float>{out.data, gathered.rows, gathered.cols, out.stride});
  }
}

void HostStagedCommunicator::BroadcastIds(int32_t* ids, int64_t count) {
  if (count == 0) return;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(int32_t));
  ids_.resize(static_cast<size_t>(count));
  if (rank() == 0) backend_->CopyToHost(ids_.data(), ids, bytes);
  inner_->BroadcastIds(ids_.data(), count);
  if (rank() != 0) backend_->CopyToDevice(ids, ids_.data(), bytes);
}

}  // namespace qserve::worker::comm
