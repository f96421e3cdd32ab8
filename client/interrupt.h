// Ctrl-C, and the call that it cancels. Thread-safe: the signal's thread trips it, the command's
// thread makes calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <mutex>

namespace qserve::client {

class Interrupt {
 public:
  // Cancels the call under way, and every later one at its start. False if there is none: nothing
  // will notice.
  bool Trip() {
    const std::lock_guard lock(mutex_);
    tripped_ = true;
    if (call_ != nullptr) call_->TryCancel();
    return call_ != nullptr;
  }

  bool tripped() const {
    const std::lock_guard lock(mutex_);
    return tripped_;
  }

  // Makes `call` the one under way while this lives. One at a time.
  class Scope {
   public:
    Scope(Interrupt& interrupt, grpc::ClientContext& call) : interrupt_(interrupt) {
      const std::lock_guard lock(interrupt_.mutex_);
      interrupt_.call_ = &call;
      if (interrupt_.tripped_) call.TryCancel();
    }
    ~Scope() {
      const std::lock_guard lock(interrupt_.mutex_);
      interrupt_.call_ = nullptr;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interrupt& interrupt_;
  };

 private:
  mutable std::mutex mutex_;
  bool tripped_ = false;                 // guarded by mutex_
  grpc::ClientContext* call_ = nullptr;  // guarded by mutex_
};

}  // namespace qserve::client
