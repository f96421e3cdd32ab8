// How a CUDA backend runs steps: one stream, the failure latch, the way of inputs to the device and
// of results back, two steps begun and not finished, and recorded steps (CUDA graphs). Knows
// nothing of the operations: they ask for the stream and for device copies of their host arrays.
// Owned by CudaBackend; its thread calls, but for Fail.
//
// A recorded step is replayed by calling it once more: up to EndRecorded its operations only hand
// over their host arrays (Stage), which go to the places that the graph reads; then one copy and
// one launch. What follows, and every other step, is enqueued as it is called.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/staging.h"
#include "kernels/status.h"

namespace qserve::kernels::cuda {

class StepRunner {
 public:
  // Both must outlive it. `patience`: how long the device may take to end what is under way when a
  // step has failed; a collective without its peers never does.
  StepRunner(Runtime* runtime, Arena* arena, int64_t staging_bytes,
             std::chrono::milliseconds patience = std::chrono::seconds(10));
  // Waits for the device.
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;
  Status Create();  // the stream and the events; before anything else

  // As in Backend.
  Status Run(uint64_t key, const std::function<void()>& step);
  Status Begin(uint64_t key, const std::function<void()>& step);
  Status Finish();
  Status Record(uint64_t key, const std::function<void()>& step);
  void EndRecorded();
  void Synchronize();
  void Fail(Status status);

  // As in CudaStreamOwner.
  StreamHandle stream();
  bool Issuing() const;
  bool Recording() const { return mode_ == Mode::kCapture; }
  void DropGraphs();

  // --- For operations.

  bool InStep() const { return mode_ != Mode::kIdle; }
  bool failed() const { return failed_; }
  // False where an operation has nothing at all to do: after a failure, or behind the recorded part
  // of a step that is being recorded.
  bool Wanted() const { return !failed() && mode_ != Mode::kSkip; }
  // Where to enqueue; null where the work is in a graph already, or has failed. Inputs staged so
  // far are on their way then.
  StreamHandle Issue();
  // Latches a failed call.
  bool Check(DeviceError error, const char* what);

  // The device's copy of host values, of type T, whose place holds `room` values (at least as many
  // as given); the rest is filled with `padding`. In a recorded step the place is fixed and its
  // room is that of the recording. Null after a failure.
  template <class T>
  T* Stage(std::span<const T> values, int64_t room, T padding) {
    const StagedBytes place =
        Place(room * int64_t{sizeof(T)}, std::ssize(values) * int64_t{sizeof(T)});
    if (place.host == nullptr) return nullptr;
    T* const to = reinterpret_cast<T*>(place.host);
    std::copy(values.begin(), values.end(), to);
    std::fill(to + values.size(), to + last_room_ / int64_t{sizeof(T)}, padding);
    return reinterpret_cast<T*>(place.device);
  }
  // Likewise for arrays of which steps use little of the room: what is beyond `values` is not
  // copied and undefined. Outside recorded parts the room is only what is seen to beforehand.
  template <class T>
  T* StageTail(std::span<const T> values, int64_t room) {
    const StagedBytes place =
        Place(room * int64_t{sizeof(T)}, std::ssize(values) * int64_t{sizeof(T)}, /*tail=*/true);
    if (place.host == nullptr) return nullptr;
    std::copy(values.begin(), values.end(), reinterpret_cast<T*>(place.host));
    return reinterpret_cast<T*>(place.device);
  }
  // Bytes to be written by the caller: the room, or, of a tail, what is used.
  StagedBytes Place(int64_t room_bytes, int64_t used_bytes, bool tail = false);

  // For inputs behind the recorded part that differ in size without bound, and their results:
  // `room` bytes of inputs and `results` bytes for ReadBack are seen to (once; only more is
  // allocated).
  void ReserveLate(int64_t room, int64_t results);
  int64_t late_room() const { return reserved_late_; }
  // `bytes` of that room, to be written by the caller. Where a step wants more of it than there is,
  // the device is waited for, and the room begins anew.
  StagedBytes PlaceLate(int64_t bytes);
  // Gives back what the last PlaceLate has beyond `bytes`.
  void TrimLate(StagedBytes piece, int64_t bytes) { late_.TrimLast(piece, bytes); }
  // Bytes that the last Place has room for.
  int64_t last_room() const { return last_room_; }
  // Whether Place gives the places of a recording (its room counts, not the caller's).
  bool PlacesAreFixed() const { return mode_ == Mode::kCapture || mode_ == Mode::kCollect; }

  // Copies device memory to pinned memory that is valid in `read`, which runs when the step is
  // finished. Not in recorded parts.
  void ReadBack(const void* device, int64_t bytes,
                std::function<void(std::span<const std::byte>)> read);

  // Counts steps; what is remembered for a step is void when it changes.
  uint64_t step_number() const { return step_number_; }
  int64_t graph_bytes() const { return graph_bytes_; }

 private:
  enum class Mode {
    kIdle,     // between steps
    kEager,    // operations are enqueued as they come
    kCapture,  // they are recorded
    kSkip,     // behind the recorded part of a step that is being recorded
    kCollect,  // they hand over inputs for a graph
    kAfter,    // behind that part: the graph is to be launched before anything else
  };
  // Where an input of a recorded step lies.
  struct Input {
    int64_t offset = 0;
    int64_t room = 0;
    bool tail = false;
    int64_t used = 0;  // by the step that is gone through
  };
  struct Graph {
    GraphHandle handle = nullptr;
    size_t block = 0;  // of the input staging
    std::vector<Input> inputs;
  };
  struct Read {
    const std::byte* host = nullptr;
    int64_t bytes = 0;
    std::function<void(std::span<const std::byte>)> read;
  };
  struct Step {
    EventHandle event = nullptr;
    std::vector<Read> reads;
    Status failure;  // of the device while it was under way: its results may be garbage
  };

  void StartStep(Mode mode);
  Status Leave();
  Status TakeFailure();
  // Steps under way when the device or another rank failed are lost with it, whoever noticed it.
  void LoseBegun(const Status& failure);
  // Waits for the event, for as long as it takes or, once something has failed, with patience. If
  // that is not enough the device is lost, and every later step fails.
  void AwaitEvent(EventHandle event, bool patiently);
  StagedBytes PlaceOfGraph(int64_t used_bytes);
  // Gives inputs their offsets, tails last; the bytes of all.
  static int64_t LayOut(std::vector<Input>* inputs);
  DeviceError Flush();
  void LaunchGraph();
  Status Capture(const std::function<void()>& step, Graph* graph);
  void EndCapture();
  int64_t FreeMemory() const;

  Runtime* const runtime_;
  Arena* const arena_;
  const std::chrono::milliseconds patience_;
  InputStaging inputs_;
  InputStaging late_;
  ResultStaging results_;
  StreamHandle stream_ = nullptr;
  EventHandle events_[kStepSlots] = {};

  Mode mode_ = Mode::kIdle;
  int slot_ = 0;
  uint64_t step_number_ = 0;
  int64_t last_room_ = 0;
  std::vector<Read> reads_;  // of the step being issued
  std::deque<Step> begun_;
  Status lost_;  // the device

  std::map<uint64_t, Graph> graphs_;
  bool may_record_ = true;
  bool measuring_ = false;
  std::vector<Input> measured_;
  Graph* graph_ = nullptr;  // being recorded or replayed
  size_t next_input_ = 0;
  int64_t wanted_ = 0;       // room of the step's inputs so far
  int64_t most_wanted_ = 0;  // by a step
  int64_t reserved_late_ = 0;
  int64_t graph_bytes_ = 0;

  std::mutex failure_mutex_;
  Status failure_;  // guarded by failure_mutex_
  std::atomic<bool> failed_ = false;
};

}  // namespace qserve::kernels::cuda
