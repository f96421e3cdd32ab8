// Full-precision products by oneDNN, one serial call for each thread of our pool. Pool's threads.
#include <dnnl.h>
#include <omp.h>

#include "common/check.h"
#include "kernels/cpu/linear_float.h"

namespace qserve::kernels::cpu {

void MultiplyFloat(const FloatLinear& weight, const LinearArgs& args, int64_t n0, int64_t n1) {
  // Debian's oneDNN runs on OpenMP, whose thread count belongs to the calling thread: without this
  // each of ours would start a team.
  omp_set_num_threads(1);
  const dnnl_status_t status =
      dnnl_sgemm('N', 'T', args.out.rows, n1 - n0, weight.k, 1.0f, args.x.f32, args.x.f32_stride,
                 weight.values.as<float>() + n0 * weight.k, weight.k, 0.0f, args.out.row(0) + n0,
                 args.out.stride);
  QSERVE_CHECK_MSG(status == dnnl_success, "dnnl_sgemm refused its arguments");
}

}  // namespace qserve::kernels::cpu
