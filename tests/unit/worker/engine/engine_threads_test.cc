// The engine on a thread of its own: waking, stopping, and many clients at once. Meant for the
// thread sanitizer as well.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "tests/fakes/engine_harness.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::engine {
namespace {

using fakes::EngineHarness;
using fakes::FakeExecutor;
using fakes::FakeExecutorOptions;
using fakes::MakeRequest;
using fakes::Prompt;
using fakes::RecordingHostGroup;

// Waits until the last event of every candidate of one request has come.
class BlockingClient {
 public:
  explicit BlockingClient(int32_t candidates) : open_(candidates) {}
  std::shared_ptr<TokenChannel> channel() { return channel_; }

  std::vector<TokenEvent> Wait() {
    std::vector<TokenEvent> all;
    std::unique_lock lock(state_->mutex);
    while (open_ > 0) {
      EXPECT_TRUE(state_->ready.wait_for(lock, std::chrono::seconds(60),
                                         [this] { return state_->signalled; }));
      state_->signalled = false;
      for (TokenEvent& event : channel_->TakeAll()) {
        if (event.finish != FinishReason::kNone) --open_;
        all.push_back(std::move(event));
      }
    }
    return all;
  }

 private:
  // Owned by the callback as well: it may be called after its event has been taken.
  struct State {
    std::mutex mutex;
    std::condition_variable ready;
    bool signalled = false;  // guarded by mutex

    void Signal() {
      {
        const std::lock_guard lock(mutex);
        signalled = true;
      }
      ready.notify_one();
    }
  };

  int32_t open_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::shared_ptr<TokenChannel> channel_ =
      std::make_shared<TokenChannel>([state = state_] { state->Signal(); });
};

// An engine that runs in a thread until it is stopped.
struct RunningEngine {
  explicit RunningEngine(FakeExecutorOptions options = {}, int group_size = 1)
      : executor(options), group(group_size), engine({}, executor, group, clock) {
    thread = std::thread([this] { status = engine.Run(); });
  }
  ~RunningEngine() { Join(); }
  void Join() {
    engine.Stop();
    if (thread.joinable()) thread.join();
  }
  absl::Status Submit(EngineRequest request, BlockingClient& client, RequestId* id = nullptr) {
    request.id = engine.NextRequestId();
    if (id != nullptr) *id = request.id;
    request.channel = client.channel();
    request.arrival = clock.Now();
    return engine.Submit(std::move(request));
  }

  SteadyClock clock;
  FakeExecutor executor;
  RecordingHostGroup group;
  Engine engine;
  absl::Status status;
  std::thread thread;
};

std::vector<int32_t> Ids(const std::vector<TokenEvent>& events) {
  std::vector<int32_t> ids;
  for (const TokenEvent& event : events) {
    if (event.token) ids.push_back(event.token->id);
  }
  return ids;
}

TEST(EngineThreads, WakesUpForARequestAndSleepsAgain) {
  RunningEngine running;
  for (int32_t i = 0; i < 3; ++i) {
    BlockingClient client(1);
    ASSERT_TRUE(running.Submit(MakeRequest(Prompt(100, i), 20), client).ok());
    EXPECT_EQ(Ids(client.Wait()), fakes::RunAlone(MakeRequest(Prompt(100, i), 20))[0].ids);
  }
  running.Join();
  EXPECT_TRUE(running.status.ok()) << running.status;
}

TEST(EngineThreads, StopEndsOpenRequestsAsCancelledAndTellsTheFollowers) {
  FakeExecutorOptions options;
  options.step_latency = std::chrono::milliseconds(2);
  RunningEngine running(options, /*group_size=*/2);
  BlockingClient client(1);
  ASSERT_TRUE(running.Submit(MakeRequest(Prompt(100), 3000), client).ok());
  while (running.engine.Stats().generated_tokens == 0) std::this_thread::yield();
  running.Join();
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(client.Wait().back().finish, FinishReason::kCancelled);
  EXPECT_TRUE(running.engine.Idle());
  ASSERT_FALSE(running.group.messages().empty());
  EXPECT_TRUE(plan::Decode(running.group.messages().back())->shutdown);
  BlockingClient late(1);
  EXPECT_EQ(running.Submit(MakeRequest(Prompt(1), 1), late).code(), absl::StatusCode::kUnavailable);
}

TEST(EngineThreads, AFailedStepEndsRun) {
  FakeExecutorOptions options;
  options.fail_await_of_step = 10;
  RunningEngine running(options);
  BlockingClient client(1);
  ASSERT_TRUE(running.Submit(MakeRequest(Prompt(100), 100), client).ok());
  const std::vector<TokenEvent> events = client.Wait();
  EXPECT_EQ(events.back().error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Ids(events).size(), 9u);
  running.thread.join();
  EXPECT_EQ(running.status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(running.engine.Stats().healthy);
}

TEST(EngineThreads, ManyThreadsSubmitAndCancel) {
  RunningEngine running;
  std::atomic<int> finished{0}, cancelled{0};
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int32_t i = 0; i < 50; ++i) {
        const EngineRequest request = MakeRequest(Prompt(30 + i, t), 1 + i);
        BlockingClient client(1);
        RequestId id;
        ASSERT_TRUE(running.Submit(request, client, &id).ok());
        if (i % 3 == 0) running.engine.Cancel(id);
        static_cast<void>(running.engine.Stats());
        const std::vector<TokenEvent> events = client.Wait();
        const bool complete = events.back().finish == FinishReason::kLength;
        if (complete) {
          EXPECT_EQ(Ids(events), fakes::RunAlone(request)[0].ids);
        }
        (complete ? finished : cancelled).fetch_add(1);
      }
    });
  }
  threads.clear();
  EXPECT_EQ(finished + cancelled, 200);
  EXPECT_GE(finished, 4 * 33);
  running.Join();
  EXPECT_TRUE(running.engine.Idle());
  EXPECT_EQ(running.engine.Stats().kv_blocks_used, 0);
}

}  // namespace
}  // namespace qserve::worker::engine
