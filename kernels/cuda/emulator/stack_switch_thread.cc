// ThreadSanitizer: inner_ and outer_ are its fibers.
#include <sanitizer/tsan_interface.h>

#include "kernels/cuda/emulator/stack_switch.h"

namespace qserve::kernels::cuda::emulator {

StackSwitch::StackSwitch(const void* bottom, size_t size)
    : bottom_(bottom), size_(size), inner_(__tsan_create_fiber(0)) {}
StackSwitch::~StackSwitch() { __tsan_destroy_fiber(inner_); }
void StackSwitch::BeforeEntering() {
  outer_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(inner_, 0);
}
void StackSwitch::AfterLeaving() {}
void StackSwitch::Entered() {}
void StackSwitch::BeforeLeaving(bool /*forever*/) { __tsan_switch_to_fiber(outer_, 0); }

}  // namespace qserve::kernels::cuda::emulator
