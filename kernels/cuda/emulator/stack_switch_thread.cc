// ThreadSanitizer: inner_ and outer_ are its fibers. Taking turns orders nothing: the emulated
// threads are judged as if they ran side by side (race_check.h).
#include <sanitizer/tsan_interface.h>

#include "kernels/cuda/emulator/stack_switch.h"

namespace qserve::kernels::cuda::emulator {

size_t IdleStacks() { return 512; }

StackSwitch::StackSwitch(void* bottom, size_t size)
    : bottom_(bottom), size_(size), inner_(__tsan_create_fiber(0)) {}
StackSwitch::~StackSwitch() { __tsan_destroy_fiber(inner_); }
void StackSwitch::BeforeEntering() {
  outer_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(inner_, __tsan_switch_to_fiber_no_sync);
}
void StackSwitch::AfterLeaving() {}
void StackSwitch::Entered() {}
void StackSwitch::BeforeLeaving(bool /*forever*/) {
  __tsan_switch_to_fiber(outer_, __tsan_switch_to_fiber_no_sync);
}

}  // namespace qserve::kernels::cuda::emulator
