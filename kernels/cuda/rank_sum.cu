// Launches the sum in rank order: four columns a thread where everything is aligned for it, else
// one.
#include "kernels/cuda/rank_sum.h"

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/rank_sum.h"

namespace qserve::kernels::cuda {
namespace {

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <int kWidth>
DeviceError LaunchWidth(StreamHandle stream, const RankSumLaunch& launch) {
  using Kernel = RankSum<kWidth>;
  typename Kernel::Params p;
  p.gathered = launch.gathered;
  p.rank_stride = launch.rank_stride;
  p.row_stride = launch.row_stride;
  p.own = launch.own;
  p.own_stride = launch.own_stride;
  p.out = launch.out.data;
  p.out_stride = launch.out.stride;
  p.rows = launch.out.rows;
  p.columns = launch.out.cols / kWidth;
  p.ranks = launch.ranks;
  p.own_rank = launch.own_rank;
  p.type = launch.out.type;
  const int64_t units = p.rows * p.columns;
  return Launch<Kernel>(
      stream, {.x = static_cast<int>((units + Kernel::kThreads - 1) / Kernel::kThreads)}, 0, p);
}

}  // namespace

DeviceError LaunchRankSum(StreamHandle stream, const RankSumLaunch& launch) {
  if (launch.out.rows == 0 || launch.out.cols == 0) return 0;
  const bool wide = (launch.out.cols | launch.rank_stride | launch.row_stride | launch.own_stride |
                     launch.out.stride) %
                            4 ==
                        0 &&
                    Aligned(launch.gathered) && Aligned(launch.own) && Aligned(launch.out.data);
  return wide ? LaunchWidth<4>(stream, launch) : LaunchWidth<1>(stream, launch);
}

}  // namespace qserve::kernels::cuda
