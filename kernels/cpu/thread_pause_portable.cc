// The pause of an architecture whose own is not written: none. CMake takes thread_pause_x86.cc in
// its place on x86-64.
#include "kernels/cpu/thread_pause.h"

namespace qserve::kernels::cpu {

void Pause() {}

}  // namespace qserve::kernels::cpu
