// No sanitizer: nobody to tell.
#include "kernels/cuda/emulator/stack_switch.h"

namespace qserve::kernels::cuda::emulator {

size_t IdleStacks() { return 0; }

StackSwitch::StackSwitch(void* bottom, size_t size) : bottom_(bottom), size_(size) {}
StackSwitch::~StackSwitch() = default;
void StackSwitch::BeforeEntering() {}
void StackSwitch::AfterLeaving() {}
void StackSwitch::Entered() {}
void StackSwitch::BeforeLeaving(bool /*forever*/) {}

}  // namespace qserve::kernels::cuda::emulator
