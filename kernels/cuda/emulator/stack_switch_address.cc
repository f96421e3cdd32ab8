// AddressSanitizer: inner_ and outer_ are its fake stacks.
#include <sanitizer/common_interface_defs.h>

#include "kernels/cuda/emulator/stack_switch.h"

namespace qserve::kernels::cuda::emulator {

size_t IdleStacks() { return 0; }

StackSwitch::StackSwitch(void* bottom, size_t size) : bottom_(bottom), size_(size) {}
StackSwitch::~StackSwitch() = default;
void StackSwitch::BeforeEntering() { __sanitizer_start_switch_fiber(&outer_, bottom_, size_); }
void StackSwitch::AfterLeaving() { __sanitizer_finish_switch_fiber(outer_, nullptr, nullptr); }
void StackSwitch::Entered() {
  __sanitizer_finish_switch_fiber(inner_, &outer_bottom_, &outer_size_);
}
void StackSwitch::BeforeLeaving(bool forever) {
  __sanitizer_start_switch_fiber(forever ? nullptr : &inner_, outer_bottom_, outer_size_);
  if (forever) inner_ = nullptr;  // the next fiber begins anew
}

}  // namespace qserve::kernels::cuda::emulator
