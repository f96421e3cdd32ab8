// Tells a sanitizer which stack is in use when a fiber is entered or left. One implementation for
// each sanitizer, chosen by CMake, and one that does nothing. Used by Fiber.
#pragma once

#include <cstddef>

namespace qserve::kernels::cuda::emulator {

// How many stacks of fibers that have ended must lie idle before one of them is used again. A race
// detector takes what happens on a stack for one thread's doing, so blocks that run side by side on
// a GPU should not follow each other on the same stacks.
size_t IdleStacks();

// A stack belongs to one fiber after another.
class StackSwitch {
 public:
  // Its lowest address and size.
  StackSwitch(void* bottom, size_t size);
  ~StackSwitch();
  StackSwitch(const StackSwitch&) = delete;

  void BeforeEntering();  // on the owner's stack
  void AfterLeaving();
  void Entered();  // on the fiber's stack
  void BeforeLeaving(bool forever);

 private:
  void* const bottom_;
  const size_t size_;
  const void* outer_bottom_ = nullptr;
  size_t outer_size_ = 0;
  void* outer_ = nullptr;
  void* inner_ = nullptr;
};

}  // namespace qserve::kernels::cuda::emulator
