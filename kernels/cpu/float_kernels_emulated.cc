// The inner loops of the floating-point operations: emulated. Any architecture.
#include "kernels/cpu/float_kernels_impl.h"
#include "kernels/cpu/vec16.h"

namespace qserve::kernels::cpu::emulated {

constexpr FloatKernels kTable = MakeFloatKernels<Vec16>();
const FloatKernels kFloatKernels = kTable;

}  // namespace qserve::kernels::cpu::emulated
