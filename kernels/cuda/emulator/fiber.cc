#include "kernels/cuda/emulator/fiber.h"

#include <cstdlib>
#include <deque>
#include <utility>

#include "common/check.h"
#include "kernels/cuda/emulator/race_check.h"
#include "kernels/cuda/emulator/stack_switch.h"

namespace qserve::kernels::cuda::emulator {

struct FiberStack {
  static constexpr size_t kBytes = size_t{128} << 10;
  FiberStack() : memory(std::malloc(kBytes)), sanitizer(memory.get(), kBytes) {
    QSERVE_CHECK(memory != nullptr);
  }
  std::unique_ptr<void, FreeForgotten> memory;
  StackSwitch sanitizer;
};

namespace {

// Stacks belong to their FiberStack.
struct NoAllocator {
  void deallocate(boost::context::stack_context&) {}
};

// Of fibers that have ended, the longest idle first.
std::deque<std::unique_ptr<FiberStack>>& Idle() {
  thread_local std::deque<std::unique_ptr<FiberStack>> idle;
  return idle;
}

std::unique_ptr<FiberStack> TakeStack() {
  if (Idle().size() <= IdleStacks()) return std::make_unique<FiberStack>();
  std::unique_ptr<FiberStack> stack = std::move(Idle().front());
  Idle().pop_front();
  return stack;
}

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)), stack_(TakeStack()) {
  boost::context::stack_context context;
  context.size = FiberStack::kBytes;
  context.sp = static_cast<char*>(stack_->memory.get()) + FiberStack::kBytes;
  const boost::context::preallocated memory(context.sp, context.size, context);
  inside_ = boost::context::fiber(std::allocator_arg, memory, NoAllocator(),
                                  [this](boost::context::fiber&& outside) {
                                    outside_ = std::move(outside);
                                    stack_->sanitizer.Entered();
                                    body_();
                                    done_ = true;
                                    stack_->sanitizer.BeforeLeaving(true);
                                    return std::move(outside_);
                                  });
}

Fiber::~Fiber() {
  QSERVE_CHECK(done_);
  Idle().push_back(std::move(stack_));
}

void Fiber::Resume() {
  stack_->sanitizer.BeforeEntering();
  inside_ = std::move(inside_).resume();
  stack_->sanitizer.AfterLeaving();
}

void Fiber::Yield() {
  stack_->sanitizer.BeforeLeaving(false);
  outside_ = std::move(outside_).resume();
  stack_->sanitizer.Entered();
}

}  // namespace qserve::kernels::cuda::emulator
