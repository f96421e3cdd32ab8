// The pause of x86-64.
#include <immintrin.h>

#include "kernels/cpu/thread_pause.h"

namespace qserve::kernels::cpu {

void Pause() { _mm_pause(); }

}  // namespace qserve::kernels::cpu
