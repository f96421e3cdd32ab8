// Tensor collectives between the ranks of a tensor-parallel group, in the order of the backend's
// operations. One per rank; the rank's executor thread calls, every rank the same calls in the same
// order. Failures are latched in the backend (Backend::Fail), so that the step that contained them
// fails. Composed with its backend in worker/exec/rank.cc; the model sees only this.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qserve::worker::comm {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // sum[i] = partial[i] of rank 0 + of rank 1 + ... in that order, in fp32, whatever the size of
  // the message: ((x0 + x1) + x2) + ...; rounded once if `sum` is fp16 or bf16. Every rank gets the
  // same bits. Rows may be strided. Both are device memory; an fp32 `sum` may be `partial` itself.
  virtual void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) = 0;

  void AllReduceSumInPlace(kernels::Matrix<float> data) {
    AllReduceSum({data.data, data.rows, data.cols, data.stride}, data);
  }

  // On rank 0: out[row][r * cols + c] = rank r's local[row][c]; `out` is [rows, size * cols] there
  // and ignored elsewhere.
  virtual void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) = 0;

  // Rank 0's ids to everybody, [count], device memory.
  virtual void BroadcastIds(int32_t* ids, int64_t count) = 0;

  // True if collectives wait for the device within the call: steps that contain them are neither
  // recorded nor prepared while the device computes another.
  virtual bool WaitsForDevice() const { return false; }

  // Ends pending and later collectives with an error. Any thread.
  virtual void Abort() = 0;
};

}  // namespace qserve::worker::comm
