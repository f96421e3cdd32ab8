#include "kernels/cuda/runtime_emulated.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>

namespace qserve::kernels::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kPoison = 0xff;  // NaN as fp32, fp16 and bf16

struct Event {
  emulator::Stream* stream = nullptr;
  int64_t recorded = 0;
  int64_t reached = 0;
};
struct Graph {
  std::vector<std::function<void()>> work;
};

std::atomic<uint64_t> devices = 0;         // made so far
thread_local uint64_t current_device = 0;  // the calling thread's, by number; 0: none

emulator::Stream* AsStream(StreamHandle stream) { return static_cast<emulator::Stream*>(stream); }

}  // namespace

EmulatedRuntime::EmulatedRuntime(const EmulatedDevice& device)
    : device_(device), id_(devices.fetch_add(1) + 1) {
  current_device = id_;
  properties_.name = "emulated GPU";
  properties_.compute_capability = device.compute_capability;
  properties_.multiprocessors = device.multiprocessors;
  properties_.memory_bytes = device.memory_bytes;
  properties_.shared_bytes_per_block = device.compute_capability == 90   ? 227 << 10
                                       : device.compute_capability == 89 ? 99 << 10
                                                                         : 163 << 10;
}

EmulatedRuntime::~EmulatedRuntime() {
  for (const auto& [memory, bytes] : device_memory_) std::free(const_cast<std::byte*>(memory));
  for (const auto& [memory, bytes] : pinned_memory_) std::free(const_cast<std::byte*>(memory));
}

DeviceError EmulatedRuntime::Misuse(const std::string& what) const {
  misuses_.push_back(what);
  return kMisuse;
}

DeviceError EmulatedRuntime::MakeCurrent() {
  current_device = id_;
  return 0;
}

DeviceError EmulatedRuntime::CheckCurrent(const char* call) const {
  if (current_device == id_) return 0;
  return Misuse(std::string(call) + " by a thread that has not made the device its own");
}

DeviceError EmulatedRuntime::NewMemory(int64_t bytes, Ranges* ranges, void** memory) {
  if (CheckCurrent("an allocation") != 0) return kMisuse;
  *memory = nullptr;
  ++allocations_;
  if (Capturing()) return Misuse("memory is allocated inside a capture");
  if (bytes <= 0) return Misuse("an allocation of nothing");
  const size_t rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  void* const made = std::aligned_alloc(kAlignment, rounded);
  if (made == nullptr) return kOutOfMemory;
  std::memset(made, kPoison, rounded);
  ranges->emplace(static_cast<const std::byte*>(made), bytes);
  *memory = made;
  return 0;
}

DeviceError EmulatedRuntime::DropMemory(void* memory, Ranges* ranges, const char* what) {
  if (CheckCurrent("a release") != 0) return kMisuse;
  if (Capturing()) return Misuse("memory is freed inside a capture");
  const auto found = ranges->find(static_cast<const std::byte*>(memory));
  if (found == ranges->end()) return Misuse(std::string(what) + " is freed that was not allocated");
  ranges->erase(found);
  std::free(memory);
  return 0;
}

DeviceError EmulatedRuntime::Allocate(int64_t bytes, void** device) {
  *device = nullptr;
  if (bytes > device_.memory_bytes - allocated_bytes_) return kOutOfMemory;
  const DeviceError error = NewMemory(bytes, &device_memory_, device);
  if (error == 0) allocated_bytes_ += bytes;
  return error;
}

DeviceError EmulatedRuntime::Free(void* device) {
  const auto found = device_memory_.find(static_cast<const std::byte*>(device));
  const int64_t bytes = found == device_memory_.end() ? 0 : found->second;
  const DeviceError error = DropMemory(device, &device_memory_, "device memory");
  if (error == 0) allocated_bytes_ -= bytes;
  return error;
}

DeviceError EmulatedRuntime::AllocatePinned(int64_t bytes, void** host) {
  return NewMemory(bytes, &pinned_memory_, host);
}

DeviceError EmulatedRuntime::FreePinned(void* host) {
  return DropMemory(host, &pinned_memory_, "pinned memory");
}

DeviceError EmulatedRuntime::MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) const {
  *free_bytes = *total_bytes = 0;
  if (CheckCurrent("a look at the memory") != 0) return kMisuse;
  *free_bytes = device_.memory_bytes - allocated_bytes_;
  *total_bytes = device_.memory_bytes;
  return 0;
}

DeviceError EmulatedRuntime::CreateStream(StreamHandle* stream) {
  if (CheckCurrent("a new stream") != 0) return kMisuse;
  *stream = new emulator::Stream(device_.order_seed);
  return 0;
}

DeviceError EmulatedRuntime::DestroyStream(StreamHandle stream) {
  if (CheckCurrent("the end of a stream") != 0) return kMisuse;
  if (AsStream(stream) == capturing_) return Misuse("a stream that records is destroyed");
  delete AsStream(stream);
  return 0;
}

DeviceError EmulatedRuntime::Synchronize(StreamHandle stream) {
  if (CheckCurrent("a wait") != 0) return kMisuse;
  if (Capturing()) return Misuse("a stream is waited for inside a capture");
  AsStream(stream)->Synchronize();
  return wait_error_;
}

bool EmulatedRuntime::Contains(const Ranges& ranges, const void* data, int64_t bytes) {
  const auto* const first = static_cast<const std::byte*>(data);
  auto range = ranges.upper_bound(first);
  if (range == ranges.begin()) return false;
  --range;
  return first + bytes <= range->first + range->second;
}

DeviceError EmulatedRuntime::CopyAsync(void* to, const void* from, int64_t bytes, CopyKind kind,
                                       StreamHandle stream) {
  if (CheckCurrent("a copy") != 0) return kMisuse;
  if (bytes < 0) return Misuse("a copy of a negative number of bytes");
  const Ranges& source = kind == CopyKind::kToDevice ? pinned_memory_ : device_memory_;
  const Ranges& target = kind == CopyKind::kToHost ? pinned_memory_ : device_memory_;
  if (!Contains(source, from, bytes)) return Misuse("a copy from memory that is not there");
  if (!Contains(target, to, bytes)) return Misuse("a copy to memory that is not there");
  if (kind == CopyKind::kToDevice) {
    ++copies_to_device_;
    bytes_to_device_ += bytes;
  }
  AsStream(stream)->Enqueue(
      [to, from, bytes] { std::memmove(to, from, static_cast<size_t>(bytes)); });
  return 0;
}

DeviceError EmulatedRuntime::FillAsync(void* device, uint8_t byte, int64_t bytes,
                                       StreamHandle stream) {
  if (CheckCurrent("a fill") != 0) return kMisuse;
  if (!Contains(device_memory_, device, bytes)) return Misuse("memory is filled that is not there");
  AsStream(stream)->Enqueue(
      [device, byte, bytes] { std::memset(device, byte, static_cast<size_t>(bytes)); });
  return 0;
}

DeviceError EmulatedRuntime::CreateEvent(EventHandle* event) {
  if (CheckCurrent("a new event") != 0) return kMisuse;
  *event = new Event;
  return 0;
}

DeviceError EmulatedRuntime::DestroyEvent(EventHandle event) {
  if (CheckCurrent("the end of an event") != 0) return kMisuse;
  auto* const dropped = static_cast<Event*>(event);
  if (dropped->reached != dropped->recorded) {
    return Misuse("an event is destroyed that its stream has not reached");
  }
  delete dropped;
  return 0;
}

DeviceError EmulatedRuntime::Record(EventHandle event, StreamHandle stream) {
  if (CheckCurrent("a record") != 0) return kMisuse;
  if (Capturing()) return Misuse("an event is recorded inside a capture");
  auto* const recorded = static_cast<Event*>(event);
  recorded->stream = AsStream(stream);
  const int64_t number = ++recorded->recorded;
  recorded->stream->Enqueue([recorded, number] { recorded->reached = number; });
  return 0;
}

DeviceError EmulatedRuntime::Wait(EventHandle event) {
  if (CheckCurrent("a wait") != 0) return kMisuse;
  if (Capturing()) return Misuse("an event is waited for inside a capture");
  ++waits_;
  const auto* const waited = static_cast<Event*>(event);
  if (waited->reached != waited->recorded) waited->stream->Synchronize();
  return wait_error_;
}

// Streams run when they are waited for, so this is where they come on.
DeviceError EmulatedRuntime::Query(EventHandle event, bool* reached) {
  if (CheckCurrent("a query") != 0) return kMisuse;
  *reached = false;
  if (Capturing()) return Misuse("an event is queried inside a capture");
  const auto* const queried = static_cast<Event*>(event);
  if (still_) return 0;
  if (queried->reached != queried->recorded) queried->stream->Synchronize();
  *reached = true;
  return wait_error_;
}

DeviceError EmulatedRuntime::BeginCapture(StreamHandle stream) {
  if (CheckCurrent("a capture") != 0) return kMisuse;
  if (Capturing()) return Misuse("a capture inside a capture");
  capturing_ = AsStream(stream);
  capturing_->BeginRecording();
  return 0;
}

DeviceError EmulatedRuntime::EndCapture(StreamHandle stream, GraphHandle* graph) {
  if (CheckCurrent("the end of a capture") != 0) return kMisuse;
  *graph = nullptr;
  if (capturing_ != AsStream(stream)) return Misuse("the end of a capture that was not begun");
  capturing_ = nullptr;
  *graph = new Graph{AsStream(stream)->EndRecording()};
  ++graphs_;
  return 0;
}

DeviceError EmulatedRuntime::Launch(GraphHandle graph, StreamHandle stream) {
  if (CheckCurrent("a launch") != 0) return kMisuse;
  if (Capturing()) return Misuse("a graph is launched inside a capture");
  ++graph_launches_;
  for (const std::function<void()>& work : static_cast<Graph*>(graph)->work) {
    AsStream(stream)->Enqueue(work);
  }
  return 0;
}

DeviceError EmulatedRuntime::DestroyGraph(GraphHandle graph) {
  if (CheckCurrent("the end of a graph") != 0) return kMisuse;
  delete static_cast<Graph*>(graph);
  --graphs_;
  return 0;
}

std::string EmulatedRuntime::ErrorText(DeviceError error) const {
  switch (error) {
    case 0:
      return "success";
    case kOutOfMemory:
      return "out of memory";
    case kMisuse:
      return "misuse of the runtime: " + (misuses_.empty() ? std::string() : misuses_.back());
    default:
      return "error " + std::to_string(error);
  }
}

}  // namespace qserve::kernels::cuda
