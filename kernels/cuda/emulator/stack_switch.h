// Tells a sanitizer which stack is in use when a fiber is entered or left. One implementation for
// each sanitizer, chosen by CMake, and one that does nothing. Used by Fiber.
#pragma once

#include <cstddef>

namespace qserve::kernels::cuda::emulator {

class StackSwitch {
 public:
  // The fiber's stack: its lowest address and size.
  StackSwitch(const void* bottom, size_t size);
  ~StackSwitch();
  StackSwitch(const StackSwitch&) = delete;

  void BeforeEntering();  // on the owner's stack
  void AfterLeaving();
  void Entered();  // on the fiber's stack
  void BeforeLeaving(bool forever);

 private:
  const void* const bottom_;
  const size_t size_;
  const void* outer_bottom_ = nullptr;
  size_t outer_size_ = 0;
  void* outer_ = nullptr;
  void* inner_ = nullptr;
};

}  // namespace qserve::kernels::cuda::emulator
