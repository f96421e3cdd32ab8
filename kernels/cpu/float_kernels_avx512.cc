// The inner loops of the floating-point operations: avx512. Compiled with the flags of this
// instruction set; called only where the CPU has it.
// GCC 12 takes the undefined registers inside its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/cpu/float_kernels_impl.h"
#include "kernels/cpu/vec16_avx512.h"

namespace qserve::kernels::cpu::avx512 {

constexpr FloatKernels kTable = MakeFloatKernels<Vec16>();
const FloatKernels kFloatKernels = kTable;

}  // namespace qserve::kernels::cpu::avx512
