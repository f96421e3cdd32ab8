#include "router/proxy/open_calls.h"

namespace qserve::router {

bool OpenCalls::Reserve() {
  if (count_.fetch_add(1) >= kMaxOpenCalls) {
    count_.fetch_sub(1);
    return false;
  }
  gauge_.Increment();
  return true;
}

void OpenCalls::Release() {
  gauge_.Decrement();
  count_.fetch_sub(1);
}

void OpenCalls::Add(ClientCall* call) {
  const std::lock_guard lock(mutex_);
  calls_.insert(call);
}

void OpenCalls::Remove(ClientCall* call) {
  const std::lock_guard lock(mutex_);
  calls_.erase(call);
}

void OpenCalls::CutAll() {
  const std::lock_guard lock(mutex_);
  for (ClientCall* call : calls_) call->CutShort();
}

}  // namespace qserve::router
