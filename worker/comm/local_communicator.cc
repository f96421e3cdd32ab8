#include "worker/comm/local_communicator.h"

#include <vector>

namespace qserve::worker::comm {

void LocalCommunicator::GatherColumns(kernels::Matrix<const float> local,
                                      kernels::Matrix<float> out) {
  if (local.data == out.data) return;
  std::vector<float> row(static_cast<size_t>(local.cols));
  const int64_t bytes = local.cols * static_cast<int64_t>(sizeof(float));
  for (int64_t r = 0; r < local.rows; ++r) {
    backend_->CopyToHost(row.data(), local.row(r), bytes);
    backend_->CopyToDevice(out.row(r), row.data(), bytes);
  }
}

}  // namespace qserve::worker::comm
