// The GPUs that the tests of this folder run on: real ones, or the emulated one that shows on every
// machine that the tests themselves work. Two implementations, chosen by CMake.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace qserve::kernels::testing {

// 0: there is none, and the tests are skipped.
int GpuCount();

// The emulated GPU runs a small part of the cases: it is slow.
bool GpuIsEmulated();

// The first GPU; several backends may share it.
StatusOr<std::unique_ptr<Backend>> MakeGpu(FloatType activation_type);

}  // namespace qserve::kernels::testing
