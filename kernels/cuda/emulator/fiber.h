// A coroutine with a stack of its own, over Boost.Context, that sanitizers can follow. Used by
// emulator.cc; Resume and Yield are called on one host thread, the one that made it.
#pragma once

#include <boost/context/fiber.hpp>
#include <functional>
#include <memory>

namespace qserve::kernels::cuda::emulator {

struct FiberStack;

class Fiber {
 public:
  // Runs `body` from the first Resume on. It must have returned before the Fiber dies.
  explicit Fiber(std::function<void()> body);
  ~Fiber();
  Fiber(const Fiber&) = delete;

  void Resume();  // by the owner: until the body yields or returns
  void Yield();   // by the body

 private:
  std::function<void()> body_;
  std::unique_ptr<FiberStack> stack_;
  boost::context::fiber inside_;
  boost::context::fiber outside_;
  bool done_ = false;
};

}  // namespace qserve::kernels::cuda::emulator
