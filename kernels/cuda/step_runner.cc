#include "kernels/cuda/step_runner.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "common/check.h"

namespace qserve::kernels::cuda {

StepRunner::StepRunner(Runtime* runtime, Arena* arena, int64_t staging_bytes,
                       std::chrono::milliseconds patience)
    : runtime_(runtime),
      arena_(arena),
      patience_(patience),
      inputs_(runtime, arena, staging_bytes),
      late_(runtime, arena, 0),
      results_(runtime) {}

StepRunner::~StepRunner() {
  if (stream_ == nullptr) return;
  runtime_->MakeCurrent();
  runtime_->Synchronize(stream_);
  for (const auto& [key, graph] : graphs_) runtime_->DestroyGraph(graph.handle);
  for (EventHandle event : events_) {
    if (event != nullptr) runtime_->DestroyEvent(event);
  }
  runtime_->DestroyStream(stream_);
}

Status StepRunner::Create() {
  DeviceError error = runtime_->MakeCurrent();
  if (error == 0) error = runtime_->CreateStream(&stream_);
  for (EventHandle& event : events_) {
    if (error == 0) error = runtime_->CreateEvent(&event);
  }
  if (error == 0) return results_.Reserve(1);
  return {StatusCode::kDevice, "cuda: stream: " + runtime_->ErrorText(error)};
}

void StepRunner::Fail(Status status) {
  const std::lock_guard lock(failure_mutex_);
  if (!failure_.ok()) return;
  failure_ = std::move(status);
  failed_ = true;
}

Status StepRunner::TakeFailure() {
  const std::lock_guard lock(failure_mutex_);
  failed_ = false;
  return std::exchange(failure_, Status());
}

bool StepRunner::Check(DeviceError error, const char* what) {
  if (error == 0) return true;
  Fail({StatusCode::kDevice, "cuda: " + std::string(what) + ": " + runtime_->ErrorText(error)});
  return false;
}

Status StepRunner::Run(uint64_t key, const std::function<void()>& step) {
  if (!begun_.empty()) return InvalidArgument("cuda: Run while steps are begun and not finished");
  if (Status status = Begin(key, step); !status.ok()) return status;
  return Finish();
}

Status StepRunner::Begin(uint64_t key, const std::function<void()>& step) {
  QSERVE_CHECK(mode_ == Mode::kIdle);
  if (std::ssize(begun_) == kStepSlots) {
    return InvalidArgument("cuda: two steps are begun and not finished");
  }
  if (!lost_.ok()) return lost_;
  const auto found = key == 0 ? graphs_.end() : graphs_.find(key);
  graph_ = found == graphs_.end() ? nullptr : &found->second;
  StartStep(graph_ == nullptr ? Mode::kEager : Mode::kCollect);
  step();
  return Leave();
}

void StepRunner::StartStep(Mode mode) {
  Check(runtime_->MakeCurrent(), "device");
  mode_ = mode;
  ++step_number_;
  next_input_ = 0;
  // Steps whose inputs take all their room fit as well, before one comes.
  if (most_wanted_ > 0 && mode == Mode::kEager) {
    if (Status status = inputs_.Reserve(most_wanted_); !status.ok()) Fail(std::move(status));
  }
  wanted_ = 0;
  inputs_.BeginStep(slot_);
  late_.BeginStep(slot_);
  results_.BeginStep(slot_);
  reads_.clear();
}

// The end of a step's issue.
Status StepRunner::Leave() {
  if (mode_ == Mode::kCollect) EndRecorded();
  if (mode_ == Mode::kAfter) LaunchGraph();
  mode_ = Mode::kIdle;
  graph_ = nullptr;
  if (!failed()) Check(runtime_->Record(events_[slot_], stream_), "event");
  if (failed()) {
    // Nothing of this step may still be under way when its host memory is used again.
    if (runtime_->Record(events_[slot_], stream_) == 0) AwaitEvent(events_[slot_], true);
    reads_.clear();
    Status failure = TakeFailure();
    LoseBegun(failure);
    return failure;
  }
  begun_.push_back({events_[slot_], std::move(reads_), Status()});
  reads_.clear();
  slot_ = (slot_ + 1) % kStepSlots;
  return {};
}

Status StepRunner::Finish() {
  if (begun_.empty()) return {};
  const Step step = std::move(begun_.front());
  begun_.pop_front();
  Check(runtime_->MakeCurrent(), "device");
  AwaitEvent(step.event, failed() || !step.failure.ok());
  if (!step.failure.ok()) Fail(step.failure);
  if (!failed()) {
    for (const Read& read : step.reads) {
      read.read(std::span(read.host, static_cast<size_t>(read.bytes)));
    }
  }
  Status failure = TakeFailure();
  LoseBegun(failure);
  return failure;
}

void StepRunner::AwaitEvent(EventHandle event, bool patiently) {
  if (!patiently) {
    Check(runtime_->Wait(event), "step");
    return;
  }
  const auto deadline = std::chrono::steady_clock::now() + patience_;
  for (bool reached = false; lost_.ok();) {
    if (!Check(runtime_->Query(event, &reached), "step") || reached) return;
    if (std::chrono::steady_clock::now() >= deadline) {
      lost_ = {StatusCode::kDevice, "cuda: the device does not end the work of a step that failed"};
      Fail(lost_);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void StepRunner::LoseBegun(const Status& failure) {
  // Arguments that were refused on the host harm their own step alone.
  if (failure.code() != StatusCode::kDevice) return;
  for (Step& step : begun_) step.failure = failure;
}

void StepRunner::Synchronize() {
  if (mode_ == Mode::kCapture) {
    Fail(InvalidArgument("cuda: a step that is recorded waits for the device"));
    return;
  }
  if (mode_ == Mode::kAfter) LaunchGraph();
  Check(runtime_->MakeCurrent(), "device");
  Check(runtime_->Synchronize(stream_), "stream");
}

StreamHandle StepRunner::stream() {
  if (mode_ == Mode::kAfter) LaunchGraph();
  // Within a step the device is current; between steps the thread may be another one.
  if (mode_ == Mode::kIdle) Check(runtime_->MakeCurrent(), "device");
  return stream_;
}

bool StepRunner::Issuing() const {
  return !failed() && mode_ != Mode::kCollect && mode_ != Mode::kSkip;
}

StreamHandle StepRunner::Issue() {
  if (!Issuing()) return nullptr;
  if (mode_ == Mode::kCapture) return stream_;
  if (mode_ == Mode::kAfter) {
    LaunchGraph();
  } else {
    Check(runtime_->MakeCurrent(), "device");
    Check(Flush(), "step inputs");
  }
  return failed() ? nullptr : stream_;
}

StagedBytes StepRunner::Place(int64_t room_bytes, int64_t used_bytes, bool tail) {
  QSERVE_CHECK(used_bytes <= room_bytes);
  last_room_ = 0;
  if (!Wanted()) return {};
  if (PlacesAreFixed()) return PlaceOfGraph(used_bytes);
  StatusOr<StagedBytes> place = inputs_.Take(tail ? used_bytes : room_bytes);
  if (!place.ok()) {
    Fail(place.status());
    return {};
  }
  wanted_ += room_bytes + InputStaging::kAlignment;
  most_wanted_ = std::max(most_wanted_, wanted_);
  if (measuring_) measured_.push_back({0, room_bytes, tail});
  last_room_ = room_bytes;
  return *place;
}

void StepRunner::ReserveLate(int64_t room, int64_t results) {
  if (!Wanted()) return;
  Status status = room > reserved_late_ ? late_.Reserve(room) : Status();
  if (status.ok() && room > reserved_late_) {
    reserved_late_ = room;
    late_.BeginStep(slot_);  // in the new block
  }
  if (status.ok()) status = results_.Reserve(results);
  if (!status.ok()) Fail(std::move(status));
}

StagedBytes StepRunner::PlaceLate(int64_t bytes) {
  QSERVE_CHECK(!PlacesAreFixed());
  if (!Wanted()) return {};
  if (!late_.Has(bytes) && bytes <= reserved_late_) {
    Synchronize();
    late_.BeginStep(slot_);
  }
  StatusOr<StagedBytes> place = late_.Take(bytes);
  if (place.ok()) return *place;
  Fail(place.status());
  return {};
}

DeviceError StepRunner::Flush() {
  const DeviceError error = inputs_.Flush(stream_);
  return error != 0 ? error : late_.Flush(stream_);
}

StagedBytes StepRunner::PlaceOfGraph(int64_t used_bytes) {
  if (next_input_ == graph_->inputs.size()) {
    Fail(InvalidArgument("cuda: a step has more inputs than its recording"));
    return {};
  }
  Input& input = graph_->inputs[next_input_++];
  if (used_bytes > input.room) {
    Fail(InvalidArgument("cuda: a step has larger inputs than its recording"));
    return {};
  }
  last_room_ = input.room;
  input.used = input.tail ? used_bytes : input.room;
  return inputs_.At(graph_->block, input.offset);
}

int64_t StepRunner::LayOut(std::vector<Input>* inputs) {
  int64_t end = 0;
  for (const bool tails : {false, true}) {
    for (Input& input : *inputs) {
      if (input.tail != tails) continue;
      input.offset = end;
      end += (input.room + InputStaging::kAlignment - 1) / InputStaging::kAlignment *
             InputStaging::kAlignment;
    }
  }
  return std::max<int64_t>(end, 1);
}

void StepRunner::ReadBack(const void* device, int64_t bytes,
                          std::function<void(std::span<const std::byte>)> read) {
  if (PlacesAreFixed()) {
    Fail(InvalidArgument("cuda: the recorded part of a step is read"));
    return;
  }
  StreamHandle const stream = Issue();
  if (stream == nullptr) return;
  StatusOr<std::byte*> host = results_.Take(bytes);
  if (!host.ok()) {
    Fail(host.status());
    return;
  }
  if (!Check(runtime_->CopyAsync(*host, device, bytes, CopyKind::kToHost, stream), "results")) {
    return;
  }
  reads_.push_back({*host, bytes, std::move(read)});
}

void StepRunner::EndRecorded() {
  measuring_ = false;
  if (mode_ == Mode::kCapture) EndCapture();
  if (mode_ != Mode::kCollect) return;
  mode_ = Mode::kAfter;
  if (failed()) return;
  if (next_input_ != graph_->inputs.size()) {
    Fail(InvalidArgument("cuda: a step has fewer inputs than its recording"));
    return;
  }
  // In the order in which they lie. Of tails what is used is copied and no more, be it by a copy of
  // its own.
  for (const bool tails : {false, true}) {
    for (const Input& input : graph_->inputs) {
      if (input.tail == tails) {
        inputs_.TakeAt(graph_->block, input.offset, input.offset + input.used);
      }
    }
  }
}

void StepRunner::LaunchGraph() {
  mode_ = Mode::kEager;
  if (failed()) return;
  if (Check(Flush(), "step inputs")) {
    Check(runtime_->Launch(graph_->handle, stream_), "graph");
  }
}

Status StepRunner::Record(uint64_t key, const std::function<void()>& step) {
  if (key == 0 || !begun_.empty() || mode_ != Mode::kIdle || graphs_.contains(key)) {
    return InvalidArgument("cuda: a step is recorded under a key of its own, between steps");
  }
  if (!may_record_) return InvalidArgument("cuda: a step is recorded after graphs were dropped");
  // Once for real: what is done at a first launch (modules, attributes, workspaces, connections)
  // may not be recorded, and the places of the inputs become known.
  measured_.clear();
  measuring_ = true;
  Status status = Run(0, step);
  measuring_ = false;
  if (!status.ok()) return status;
  Graph graph;
  graph.inputs = measured_;
  StatusOr<size_t> block = inputs_.BlockOf(LayOut(&graph.inputs));
  if (!block.ok()) return block.status();
  graph.block = *block;
  const int64_t free_before = FreeMemory();
  status = Capture(step, &graph);
  if (!status.ok()) return status;
  const int64_t taken = std::max<int64_t>(0, free_before - FreeMemory());
  graph_bytes_ += taken;
  if (taken > 0) arena_->Note("graphs", taken);
  graphs_.emplace(key, std::move(graph));
  return {};
}

Status StepRunner::Capture(const std::function<void()>& step, Graph* graph) {
  graph_ = graph;
  StartStep(Mode::kCapture);
  if (!Check(runtime_->BeginCapture(stream_), "capture")) {
    mode_ = Mode::kIdle;
    return TakeFailure();
  }
  step();
  if (mode_ == Mode::kCapture) EndCapture();
  mode_ = Mode::kIdle;
  if (!failed() && next_input_ != graph->inputs.size()) {
    Fail(InvalidArgument("cuda: a step has other inputs when it is recorded"));
  }
  graph_ = nullptr;
  if (failed() && graph->handle != nullptr) {
    runtime_->DestroyGraph(graph->handle);
    graph->handle = nullptr;
  }
  return TakeFailure();
}

// Also after a failure: the stream must work again.
void StepRunner::EndCapture() {
  mode_ = Mode::kSkip;
  Check(runtime_->EndCapture(stream_, &graph_->handle), "capture");
}

int64_t StepRunner::FreeMemory() const {
  int64_t free = 0, total = 0;
  return runtime_->MemoryInfo(&free, &total) == 0 ? free : 0;
}

void StepRunner::DropGraphs() {
  QSERVE_CHECK(mode_ == Mode::kIdle);
  may_record_ = false;
  runtime_->MakeCurrent();
  runtime_->Synchronize(stream_);
  for (const auto& [key, graph] : graphs_) runtime_->DestroyGraph(graph.handle);
  graphs_.clear();
  if (graph_bytes_ > 0) arena_->Note("graphs", -graph_bytes_);
  graph_bytes_ = 0;
}

}  // namespace qserve::kernels::cuda
