// NCCL between threads of one process, for tests of everything around it: really moves memory, in
// the order of each rank's emulated stream; begins late, connects only when all have come, hangs
// when a rank does not come, as the real one does. What the real one forbids ends the test program.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/emulator/emulator.h"
#include "worker/comm/nccl_api.h"

namespace qserve::worker::comm {

// What the GPUs of a group share. Thread-safe; outlives the connections.
class FakeNcclWires {
 public:
  std::string NewId() {
    const std::lock_guard lock(mutex_);
    return "group " + std::to_string(++groups_);
  }
  void Connect(const std::string& id, int rank) {
    const std::lock_guard lock(mutex_);
    QSERVE_CHECK(connected_[id].insert(rank).second);
  }
  bool AllConnected(const std::string& id, int size) {
    const std::lock_guard lock(mutex_);
    return std::cmp_equal(connected_[id].size(), size);
  }
  void Send(int from, int to, const void* data, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto* begin = static_cast<const std::byte*>(data);
    mail_[{from, to}].emplace_back(begin, begin + bytes);
    changed_.notify_all();
  }
  // Waits; false: aborted.
  bool Receive(int from, int to, void* data, int64_t bytes, const std::atomic<bool>& aborted) {
    std::unique_lock lock(mutex_);
    auto& box = mail_[{from, to}];
    changed_.wait(lock, [&] { return aborted || !box.empty(); });
    if (aborted) return false;
    QSERVE_CHECK(std::cmp_equal(box.front().size(), bytes));  // ranks in different collectives
    std::memcpy(data, box.front().data(), box.front().size());
    box.pop_front();
    return true;
  }
  void Wake() {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int groups_ = 0;
  std::map<std::string, std::set<int>> connected_;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> mail_;
};

// What tests do to a connection and ask of it, beside its communicator. Outlives both.
struct FakeNcclProbe {
  std::atomic<bool> aborted{false};
  std::atomic<bool> disconnected{false};
  std::atomic<bool> fail_state{false};  // as when another rank's connection is lost
  std::atomic<int> calls{0};            // that would put work on the stream
  std::atomic<int> states{0};           // that were asked for
  std::atomic<bool> at_once{false};     // work is on the stream when a call returns, as usual
  // A driver that hangs: the call (by name) returns when the connection is aborted, or after a
  // while, when it has not been.
  std::atomic<const char*> hangs{nullptr};
  std::atomic<bool> hanging{false};
  std::atomic<bool> hung_in_vain{false};
  void Hang(const char* call) {
    if (hangs == nullptr || std::strcmp(hangs, call) != 0) return;
    hanging = true;
    for (int i = 0; i < 10000 && !aborted; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (!aborted) hung_in_vain = true;
  }
  std::function<void()> on_end = [] {};
};

class FakeNccl final : public NcclApi {
 public:
  FakeNccl(FakeNcclWires* wires, FakeNcclProbe* probe) : wires_(wires), probe_(probe) {}

  NcclResult NewId(std::string* id) override {
    *id = wires_->NewId();
    return NcclResult::kOk;
  }
  NcclResult Connect(int size, int rank, const std::string& id) override {
    size_ = size;
    rank_ = rank;
    id_ = id;
    wires_->Connect(id, rank);
    return NcclResult::kInProgress;
  }
  NcclResult State() override {
    const Turn turn(this);
    ++probe_->states;
    probe_->Hang("State");
    if (probe_->aborted) return NcclResult::kFailed;
    if (probe_->fail_state) return NcclResult::kFailed;
    if (!wires_->AllConnected(id_, size_)) return NcclResult::kInProgress;
    if (begun_ == nullptr) return NcclResult::kOk;
    if (--polls_left_ > 0) return NcclResult::kInProgress;
    std::exchange(begun_, nullptr)();  // only now on the stream
    return NcclResult::kOk;
  }

  NcclResult GroupStart() override {
    const Turn turn(this);
    CheckFree();
    QSERVE_CHECK(!in_group_);
    in_group_ = true;
    return NcclResult::kOk;
  }
  NcclResult GroupEnd() override {
    const Turn turn(this);
    QSERVE_CHECK(in_group_);
    in_group_ = false;
    if (group_.empty()) return NcclResult::kOk;
    return Begin(std::exchange(group_, {}));
  }
  NcclResult Send(const void* data, int64_t bytes, int peer,
                  kernels::cuda::StreamHandle stream) override {
    QSERVE_CHECK(in_group_);
    return Add(stream, {[=, this] { wires_->Send(rank_, peer, data, bytes); }, [] {}});
  }
  NcclResult Receive(void* data, int64_t bytes, int peer,
                     kernels::cuda::StreamHandle stream) override {
    QSERVE_CHECK(in_group_);
    return Add(stream, {[] {}, [=, this] { Take(peer, data, bytes); }});
  }
  NcclResult AllGather(const void* mine, void* all, int64_t bytes,
                       kernels::cuda::StreamHandle stream) override {
    auto* to = static_cast<std::byte*>(all);
    return Add(stream, {[=, this] {
                          for (int r = 0; r < size_; ++r) {
                            if (r != rank_) wires_->Send(rank_, r, mine, bytes);
                          }
                        },
                        [=, this] {
                          std::memmove(to + rank_ * bytes, mine, static_cast<size_t>(bytes));
                          for (int r = 0; r < size_; ++r) {
                            if (r != rank_) Take(r, to + r * bytes, bytes);
                          }
                        }});
  }
  NcclResult Broadcast(void* data, int64_t bytes, int root,
                       kernels::cuda::StreamHandle stream) override {
    return Add(stream, {[=, this] {
                          for (int r = 0; r < size_ && rank_ == root; ++r) {
                            if (r != rank_) wires_->Send(rank_, r, data, bytes);
                          }
                        },
                        [=, this] {
                          if (rank_ != root) Take(root, data, bytes);
                        }});
  }

  NcclResult Mark(kernels::cuda::StreamHandle stream) override {
    const Turn turn(this);
    CheckFree();
    QSERVE_CHECK(!Stream(stream)->recording());
    reached_ = false;
    Stream(stream)->Enqueue([this] { reached_ = true; });
    return NcclResult::kOk;
  }
  NcclResult MarkState() override {
    probe_->Hang("MarkState");
    return reached_ ? NcclResult::kOk : NcclResult::kInProgress;
  }

  void Abort() override {
    QSERVE_CHECK(!probe_->aborted && !probe_->disconnected);
    probe_->aborted = true;
    probe_->on_end();
    wires_->Wake();
  }
  NcclResult Disconnect() override {
    const Turn turn(this);
    CheckFree();
    probe_->disconnected = true;
    probe_->on_end();
    return NcclResult::kOk;
  }
  std::string ErrorText() const override { return "a remote rank has failed"; }

 private:
  // First everybody hands over what it has, then everybody takes.
  struct Work {
    std::function<void()> give;
    std::function<void()> take;
  };

  // NCCL lets one thread at a time call; a group's end begins work within its own turn.
  class Turn {
   public:
    explicit Turn(FakeNccl* nccl) : nccl_(nccl) { QSERVE_CHECK(!nccl_->called_.exchange(true)); }
    ~Turn() { nccl_->called_ = false; }

   private:
    FakeNccl* nccl_;
  };

  static kernels::cuda::emulator::Stream* Stream(kernels::cuda::StreamHandle stream) {
    return static_cast<kernels::cuda::emulator::Stream*>(stream);
  }
  void CheckFree() const { QSERVE_CHECK(begun_ == nullptr && !probe_->aborted); }

  NcclResult Add(kernels::cuda::StreamHandle stream, Work work) {
    const Turn turn(this);
    CheckFree();
    ++probe_->calls;
    probe_->Hang("Add");
    if (probe_->aborted) return NcclResult::kFailed;
    stream_ = Stream(stream);
    if (!in_group_) return Begin({std::move(work)});
    group_.push_back(std::move(work));
    return NcclResult::kOk;
  }
  NcclResult Begin(std::vector<Work> works) {
    polls_left_ = 3;
    begun_ = [this, works = std::move(works)] {
      stream_->Enqueue([works] {
        for (const Work& work : works) work.give();
        for (const Work& work : works) work.take();
      });
    };
    if (!probe_->at_once) return NcclResult::kInProgress;
    std::exchange(begun_, nullptr)();
    return NcclResult::kOk;
  }
  void Take(int from, void* data, int64_t bytes) {
    wires_->Receive(from, rank_, data, bytes, probe_->aborted);
  }

  FakeNcclWires* wires_;
  FakeNcclProbe* probe_;
  int size_ = 0;
  int rank_ = 0;
  std::string id_;
  bool in_group_ = false;
  std::vector<Work> group_;
  kernels::cuda::emulator::Stream* stream_ = nullptr;
  std::function<void()> begun_;
  int polls_left_ = 0;
  std::atomic<bool> reached_{true};
  std::atomic<bool> called_{false};
};

}  // namespace qserve::worker::comm
