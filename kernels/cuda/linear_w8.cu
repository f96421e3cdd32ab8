// Linears with 8-bit weights: the int8 lm_head.
#include "kernels/cuda/device/linear_launch_shape.h"

namespace qserve::kernels::cuda {

DeviceError LaunchLinearW8(StreamHandle stream, int tokens, const LinearParams& params) {
  switch (tokens) {
    case 16:
      return LaunchLinearShape<W8, LinearD16<true>>(stream, params);
    case 32:
      return LaunchLinearShape<W8, LinearS32<true>>(stream, params);
    case 64:
      return LaunchLinearShape<W8, LinearS64<true>>(stream, params);
    case 128:
      return LaunchLinearShape<W8, LinearM128<true>>(stream, params);
    default:
      return LaunchLinearShape<W8, LinearL256<true>>(stream, params);
  }
}

}  // namespace qserve::kernels::cuda
