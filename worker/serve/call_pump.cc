#include "worker/serve/call_pump.h"

#include "common/check.h"

namespace qserve::worker::serve {

CallPump::CallPump(int threads) {
  for (int i = 0; i < threads; ++i) shards_.push_back(std::make_unique<Shard>());
  for (auto& shard : shards_) shard->thread = std::thread([this, &shard = *shard] { Work(shard); });
}

CallPump::~CallPump() {
  for (auto& shard : shards_) {
    {
      const std::lock_guard lock(shard->queue_mutex);
      shard->stopping = true;
    }
    shard->wake.notify_all();
    shard->thread.join();
    QSERVE_CHECK(shard->calls.empty());
  }
}

CallPump::Shard& CallPump::ShardOf(engine::RequestId id) const {
  return *shards_[static_cast<size_t>(id.value()) % shards_.size()];
}

void CallPump::Add(engine::RequestId id, PumpedCall* call) {
  Shard& shard = ShardOf(id);
  const std::lock_guard lock(shard.call_mutex);
  shard.calls.emplace(id, call);
}

void CallPump::Remove(engine::RequestId id) {
  Shard& shard = ShardOf(id);
  const std::lock_guard lock(shard.call_mutex);
  shard.calls.erase(id);
}

void CallPump::Notify(engine::RequestId id) {
  Shard& shard = ShardOf(id);
  {
    const std::lock_guard lock(shard.queue_mutex);
    shard.ready.push_back(id);
  }
  shard.wake.notify_one();
}

void CallPump::Locked(engine::RequestId id, const std::function<std::function<void()>()>& body) {
  std::function<void()> action;
  {
    const std::lock_guard lock(ShardOf(id).call_mutex);
    action = body();
  }
  if (action) action();
}

void CallPump::Reach(Shard& shard, engine::RequestId id,
                     std::function<void()> (PumpedCall::*what)()) {
  Locked(id, [&shard, id, what]() -> std::function<void()> {
    const auto call = shard.calls.find(id);
    return call == shard.calls.end() ? std::function<void()>() : (call->second->*what)();
  });
}

void CallPump::CutAll() {
  for (auto& shard : shards_) {
    std::vector<engine::RequestId> ids;
    {
      const std::lock_guard lock(shard->call_mutex);
      for (const auto& [id, call] : shard->calls) ids.push_back(id);
    }
    for (const engine::RequestId id : ids) Reach(*shard, id, &PumpedCall::CutShort);
  }
}

int64_t CallPump::open_calls() const {
  int64_t open = 0;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->call_mutex);
    open += static_cast<int64_t>(shard->calls.size());
  }
  return open;
}

void CallPump::Work(Shard& shard) {
  while (true) {
    engine::RequestId id;
    {
      std::unique_lock lock(shard.queue_mutex);
      shard.wake.wait(lock, [&shard] { return shard.stopping || !shard.ready.empty(); });
      if (shard.ready.empty()) return;
      id = shard.ready.front();
      shard.ready.pop_front();
    }
    Reach(shard, id, &PumpedCall::Advance);
  }
}

}  // namespace qserve::worker::serve
