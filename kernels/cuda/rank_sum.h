// The device's part of a collective: adds what several ranks sent, in rank order, or copies rows
// between a packed and a strided matrix. Called by worker/comm's NCCL communicator on the thread
// that uses the backend; enqueues and returns.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

// out[r][c] = ((x0 + x1) + x2) + ... in fp32, rounded once to out's type, where
// xi = gathered[i * rank_stride + r * row_stride + c], except that rank `own_rank` reads
// own[r * own_stride + c]. One rank: a copy. `out` may be `own` itself.
struct RankSumLaunch {
  const float* gathered = nullptr;
  int64_t rank_stride = 0;
  int64_t row_stride = 0;
  int ranks = 1;
  int own_rank = -1;  // none
  const float* own = nullptr;
  int64_t own_stride = 0;
  FloatMatrix out;
};

DeviceError LaunchRankSum(StreamHandle stream, const RankSumLaunch& launch);

}  // namespace qserve::kernels::cuda
