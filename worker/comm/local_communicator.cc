#include "worker/comm/local_communicator.h"

#include <cstddef>
#include <vector>

#include "worker/comm/matrix_copy.h"

namespace qserve::worker::comm {

void LocalCommunicator::AllReduceSum(kernels::Matrix<const float> partial,
                                     kernels::FloatMatrix sum) {
  if (partial.data == sum.data) return;
  std::vector<float> row(static_cast<size_t>(partial.cols));
  const int64_t element = kernels::BytesOf(sum.type);
  std::vector<std::byte> rounded(static_cast<size_t>(partial.cols * element));
  for (int64_t r = 0; r < partial.rows; ++r) {
    backend_->CopyToHost(row.data(), partial.row(r), partial.cols * int64_t{sizeof(float)});
    Store(row.data(), {rounded.data(), sum.type, 1, sum.cols, sum.cols});
    backend_->CopyToDevice(static_cast<std::byte*>(sum.data) + r * sum.stride * element,
                           rounded.data(), std::ssize(rounded));
  }
}

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
