#include "kernels/cuda/emulator/fiber.h"

#include <boost/context/pooled_fixedsize_stack.hpp>
#include <utility>

#include "common/check.h"

namespace qserve::kernels::cuda::emulator {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;

// Stacks are used again by the next block's threads.
boost::context::pooled_fixedsize_stack& Stacks() {
  thread_local boost::context::pooled_fixedsize_stack stacks(kStackBytes);
  return stacks;
}

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)) {
  boost::context::pooled_fixedsize_stack allocator = Stacks();
  const boost::context::stack_context stack = allocator.allocate();
  const auto* bottom = static_cast<const char*>(stack.sp) - stack.size;
  stack_ = std::make_unique<StackSwitch>(bottom, stack.size);
  const boost::context::preallocated memory(stack.sp, stack.size, stack);
  inside_ = boost::context::fiber(std::allocator_arg, memory, allocator,
                                  [this](boost::context::fiber&& outside) {
                                    outside_ = std::move(outside);
                                    stack_->Entered();
                                    body_();
                                    done_ = true;
                                    stack_->BeforeLeaving(true);
                                    return std::move(outside_);
                                  });
}

Fiber::~Fiber() { QSERVE_CHECK(done_); }

void Fiber::Resume() {
  stack_->BeforeEntering();
  inside_ = std::move(inside_).resume();
  stack_->AfterLeaving();
}

void Fiber::Yield() {
  stack_->BeforeLeaving(false);
  outside_ = std::move(outside_).resume();
  stack_->Entered();
}

}  // namespace qserve::kernels::cuda::emulator
