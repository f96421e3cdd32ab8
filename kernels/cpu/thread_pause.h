// What a thread does between two looks at a variable that it waits for. Chosen by CMake for the
// architecture; called by the thread pool.
#pragma once

namespace qserve::kernels::cpu {

// Leaves a core's other hardware thread more of the core for a moment.
void Pause();

}  // namespace qserve::kernels::cpu
