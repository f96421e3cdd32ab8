// Linears with 4-bit weights in groups of 128 columns.
#include "kernels/cuda/device/linear_launch_shape.h"

namespace qserve::kernels::cuda {

DeviceError LaunchLinearW4Group(StreamHandle stream, int tokens, const LinearParams& params) {
  switch (tokens) {
    case 16:
      return LaunchLinearShape<W4Group, LinearD16<false>>(stream, params);
    case 32:
      return LaunchLinearShape<W4Group, LinearS32<false>>(stream, params);
    case 64:
      return LaunchLinearShape<W4Group, LinearS64<false>>(stream, params);
    case 128:
      return LaunchLinearShape<W4Group, LinearM128<false>>(stream, params);
    default:
      return LaunchLinearShape<W4Group, LinearL256<false>>(stream, params);
  }
}

}  // namespace qserve::kernels::cuda
