// The inner loops of the floating-point operations: avx2. Compiled with the flags of this
// instruction set; called only where the CPU has it.
#include "kernels/cpu/float_kernels_impl.h"
#include "kernels/cpu/vec16_avx2.h"

namespace qserve::kernels::cpu::avx2 {

constexpr FloatKernels kTable = MakeFloatKernels<Vec16>();
const FloatKernels kFloatKernels = kTable;

}  // namespace qserve::kernels::cpu::avx2
