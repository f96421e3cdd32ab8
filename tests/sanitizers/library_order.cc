// Lets the thread sanitizer see what gRPC orders. Linked into every program of the preset tsan.
//
// The system's gRPC and Abseil are not instrumented, and their locks are made of atomics and
// futexes: whatever one thread hands to another through gRPC would be taken for a race. A program's
// own definitions come before those of a shared library, so these are called in the library's
// place; they call it, and tell the sanitizer what it could not see:
//   - what came before an unlock happened before what follows the next lock of the same mutex;
//   - what came before a copy of a status went happened before the last one goes;
//   - what came before the start of a batch of a call happened before that batch is reported done;
//   - what came before one of a call's reactions ended happened before OnDone, and what came before
//     OnDone returned, before the shutdown of the server returns.
// No order is claimed that the libraries do not make, so no race is hidden. Left out: readers'
// locks and conditions of absl::Mutex (neither gRPC nor the project uses them), and everything over
// the network, also within one process.
#include <absl/status/status.h>
#include <absl/synchronization/mutex.h>
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/server.h>
#include <grpcpp/support/server_callback.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#define QSERVE_TEXT_OF(x) #x
#define QSERVE_TEXT(x) QSERVE_TEXT_OF(x)

namespace {

// The library's own function of that symbol.
template <class Function>
Function Original(const char* symbol) {
  void* const function = dlsym(RTLD_NEXT, symbol);
  if (function == nullptr) {
    std::fprintf(stderr, "tests/sanitizers/library_order.cc: no library has %s\n", symbol);
    std::abort();
  }
  return reinterpret_cast<Function>(function);
}

// The same for a symbol that names Abseil, which lives in a namespace of its release or
// distribution.
template <class Function>
Function Original(const char* before_namespace, const char* after_namespace) {
  constexpr const char* kNamespace = QSERVE_TEXT(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  char symbol[160];
  std::snprintf(symbol, sizeof(symbol), "%s%zu%s%s", before_namespace, std::strlen(kNamespace),
                kNamespace, after_namespace);
  return Original<Function>(symbol);
}

constexpr const char* kInAbsl = "_ZN4absl";

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto original = Original<void (*)(Mutex*)>(kInAbsl, "5Mutex4LockEv");
  original(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto original = Original<bool (*)(Mutex*)>(kInAbsl, "5Mutex7TryLockEv");
  const bool locked = original(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static const auto original = Original<void (*)(Mutex*)>(kInAbsl, "5Mutex6UnlockEv");
  __tsan_release(this);
  original(this);
}

// Waiting unlocks, and locks again, inside the library.
void CondVar::Wait(Mutex* mutex) {
  static const auto original =
      Original<void (*)(CondVar*, Mutex*)>(kInAbsl, "7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  original(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto original = Original<bool (*)(CondVar*, Mutex*, Duration)>(
      kInAbsl, "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool timed_out = original(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto original = Original<bool (*)(CondVar*, Mutex*, Time)>(
      kInAbsl, "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool timed_out = original(this, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

// Copies of a status share its text; the last to go frees it.
void Status::UnrefNonInlined(uintptr_t rep) {
  static const auto original = Original<void (*)(uintptr_t)>(kInAbsl, "6Status15UnrefNonInlinedEm");
  __tsan_release(reinterpret_cast<void*>(rep));
  __tsan_acquire(reinterpret_cast<void*>(rep));
  original(rep);
}

ABSL_NAMESPACE_END
}  // namespace absl

// `tag` stands for a batch from its start to its report.
extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count,
                                                 void* tag, void* reserved) {
  static const auto original = Original<decltype(&grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return original(call, ops, count, tag, reserved);
}

// Inside gRPC: a batch is done. The callback follows on this thread, or on one that takes it from a
// locked queue; a completion queue hands the tag to whoever asks for it.
struct grpc_cq_completion;
void grpc_cq_end_op(grpc_completion_queue* queue, void* tag, absl::Status error,
                    void (*done)(void*, grpc_cq_completion*), void* done_argument,
                    grpc_cq_completion* storage, bool internal) {
  static const auto original =
      Original<decltype(&grpc_cq_end_op)>("_Z14grpc_cq_end_opP21grpc_completion_queuePvN4absl",
                                          "6StatusEPFvS1_P18grpc_cq_completionES1_S6_b");
  __tsan_acquire(tag);
  __tsan_release(tag);
  original(queue, tag, std::move(error), done, done_argument, storage, internal);
}

extern "C" grpc_event grpc_completion_queue_next(grpc_completion_queue* queue,
                                                 gpr_timespec deadline, void* reserved) {
  static const auto original =
      Original<decltype(&grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = original(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

extern "C" grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                                  gpr_timespec deadline, void* reserved) {
  static const auto original =
      Original<decltype(&grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = original(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(tag);
  return event;
}

namespace grpc {
namespace internal {

// Called by whoever drops a call's last reference. Reactions drop theirs in code that the sanitizer
// sees, the last one may be dropped where it does not.
void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static const auto original = Original<void (*)(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  __tsan_acquire(&callbacks_outstanding_);
  original(this, inline_ondone);
}

namespace {

// Stands for a call's reactor while the call is told that it was cancelled.
class Cancelled final : public ServerReactor {
 public:
  Cancelled(ServerReactor& reactor, void* references)
      : reactor_(reactor), references_(references) {}
  void OnCancel() override {
    reactor_.OnCancel();
    __tsan_release(references_);
    delete this;
  }
  void OnDone() override {}  // not asked for
  bool InternalInlineable() override { return reactor_.InternalInlineable(); }

 private:
  ServerReactor& reactor_;
  void* const references_;
};

}  // namespace

// OnCancel runs on a thread of gRPC's executor, and the reference dropped after it is the
// library's.
void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  static const auto original = Original<void (*)(ServerCallbackCall*, ServerReactor*)>(
      "_ZN4grpc8internal18ServerCallbackCall12CallOnCancelEPNS0_13ServerReactorE");
  original(this, new Cancelled(*reactor, &callbacks_outstanding_));
}

}  // namespace internal

// A call has dropped its reference to the server.
void Server::UnrefWithPossibleNotify() {
  static const auto original =
      Original<void (*)(Server*)>("_ZN4grpc6Server23UnrefWithPossibleNotifyEv");
  __tsan_release(this);
  original(this);
}

// The shutdown waits until every call has.
void Server::UnrefAndWaitLocked() {
  static const auto original = Original<void (*)(Server*)>("_ZN4grpc6Server18UnrefAndWaitLockedEv");
  original(this);
  __tsan_acquire(this);
}

}  // namespace grpc
