// The threads between the engine and gRPC. The engine thread only says "call N has news"; a pump
// thread detokenizes, looks for stop strings and starts the write. Calls are spread over shards by
// id; everything of a call is guarded by its shard's mutex, so the pump, gRPC's completion threads
// and cancellation never touch it at once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "worker/engine/request.h"

namespace qserve::worker::serve {

// An open call. The gRPC reactor derives from it and deletes itself in OnDone, after Remove.
class PumpedCall {
 public:
  virtual ~PumpedCall() = default;
  // News: take them and return what is to be done once the mutex is free (starting a write or
  // finishing), or nothing. Called with the shard's mutex held.
  virtual std::function<void()> Advance() = 0;
  // The same, for a call that must end soon because the server does.
  virtual std::function<void()> CutShort() = 0;
};

class CallPump {
 public:
  explicit CallPump(int threads);
  ~CallPump();  // every call must have been removed
  CallPump(const CallPump&) = delete;
  CallPump& operator=(const CallPump&) = delete;

  void Add(engine::RequestId id, PumpedCall* call);
  void Remove(engine::RequestId id);
  // Any thread, the engine's too: queues Advance for the call; ids that are gone are ignored.
  void Notify(engine::RequestId id);
  // Runs `body` with the call's mutex held, then what it returned without it.
  void Locked(engine::RequestId id, const std::function<std::function<void()>()>& body);

  // CutShort for every call there is.
  void CutAll();

  int64_t open_calls() const;

 private:
  struct Shard {
    std::mutex call_mutex;  // guards calls and every call's state
    std::unordered_map<engine::RequestId, PumpedCall*> calls;
    std::mutex
        queue_mutex;  // guards the two below; never held together with call_mutex by one thread
    std::deque<engine::RequestId> ready;
    bool stopping = false;
    std::condition_variable wake;
    std::thread thread;
  };
  void Work(Shard& shard);
  // Does `what` to the call, if it is still there.
  void Reach(Shard& shard, engine::RequestId id, std::function<void()> (PumpedCall::*what)());
  Shard& ShardOf(engine::RequestId id) const;

  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace qserve::worker::serve
