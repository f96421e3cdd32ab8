// Linears with 4-bit weights, a scale and a zero per row.
#include "kernels/cuda/device/linear_launch_shape.h"

namespace qserve::kernels::cuda {

DeviceError LaunchLinearW4Channel(StreamHandle stream, int tokens, const LinearParams& params) {
  switch (tokens) {
    case 16:
      return LaunchLinearShape<W4Channel, LinearD16<false>>(stream, params);
    case 32:
      return LaunchLinearShape<W4Channel, LinearS32<false>>(stream, params);
    case 64:
      return LaunchLinearShape<W4Channel, LinearS64<false>>(stream, params);
    case 128:
      return LaunchLinearShape<W4Channel, LinearM128<false>>(stream, params);
    default:
      return LaunchLinearShape<W4Channel, LinearL256<false>>(stream, params);
  }
}

}  // namespace qserve::kernels::cuda
