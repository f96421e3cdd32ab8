// Runtime over the CUDA runtime library: the one source of the host side that includes its headers.
// Made by cuda_backend_factory.cc.
#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda_backend.h"

namespace qserve::kernels {
namespace cuda {
namespace {

constexpr int kOldestCapability = 80;

static_assert(cudaSuccess == 0, "0 is success for whoever does not know CUDA's headers");

DeviceError Code(cudaError_t error) {
  // Errors of a call stay for cudaGetLastError: taken here, so that a launch does not find them.
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<DeviceError>(error);
}

cudaStream_t AsStream(StreamHandle stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t AsEvent(EventHandle event) { return static_cast<cudaEvent_t>(event); }
cudaGraphExec_t AsGraph(GraphHandle graph) { return static_cast<cudaGraphExec_t>(graph); }

cudaMemcpyKind AsKind(CopyKind kind) {
  switch (kind) {
    case CopyKind::kToDevice:
      return cudaMemcpyHostToDevice;
    case CopyKind::kToHost:
      return cudaMemcpyDeviceToHost;
    case CopyKind::kOnDevice:
      return cudaMemcpyDeviceToDevice;
  }
  return cudaMemcpyDefault;
}

class CudaRuntime final : public Runtime {
 public:
  CudaRuntime(int ordinal, DeviceProperties properties)
      : ordinal_(ordinal), properties_(std::move(properties)) {}

  const DeviceProperties& properties() const override { return properties_; }
  DeviceError MakeCurrent() override { return Code(cudaSetDevice(ordinal_)); }

  DeviceError Allocate(int64_t bytes, void** device) override {
    return Code(cudaMalloc(device, static_cast<size_t>(bytes)));
  }
  DeviceError Free(void* device) override { return Code(cudaFree(device)); }
  DeviceError AllocatePinned(int64_t bytes, void** host) override {
    return Code(cudaHostAlloc(host, static_cast<size_t>(bytes), cudaHostAllocDefault));
  }
  DeviceError FreePinned(void* host) override { return Code(cudaFreeHost(host)); }
  DeviceError MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) const override {
    size_t free_now = 0, total = 0;
    const DeviceError error = Code(cudaMemGetInfo(&free_now, &total));
    *free_bytes = static_cast<int64_t>(free_now);
    *total_bytes = static_cast<int64_t>(total);
    return error;
  }

  DeviceError CreateStream(StreamHandle* stream) override {
    cudaStream_t made = nullptr;
    const DeviceError error = Code(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    *stream = made;
    return error;
  }
  DeviceError DestroyStream(StreamHandle stream) override {
    return Code(cudaStreamDestroy(AsStream(stream)));
  }
  DeviceError Synchronize(StreamHandle stream) override {
    return Code(cudaStreamSynchronize(AsStream(stream)));
  }
  DeviceError CopyAsync(void* to, const void* from, int64_t bytes, CopyKind kind,
                        StreamHandle stream) override {
    return Code(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), AsKind(kind), AsStream(stream)));
  }
  DeviceError FillAsync(void* device, uint8_t byte, int64_t bytes, StreamHandle stream) override {
    return Code(cudaMemsetAsync(device, byte, static_cast<size_t>(bytes), AsStream(stream)));
  }

  DeviceError CreateEvent(EventHandle* event) override {
    cudaEvent_t made = nullptr;
    const DeviceError error = Code(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    *event = made;
    return error;
  }
  DeviceError DestroyEvent(EventHandle event) override {
    return Code(cudaEventDestroy(AsEvent(event)));
  }
  DeviceError Record(EventHandle event, StreamHandle stream) override {
    return Code(cudaEventRecord(AsEvent(event), AsStream(stream)));
  }
  DeviceError Wait(EventHandle event) override {
    return Code(cudaEventSynchronize(AsEvent(event)));
  }
  DeviceError Query(EventHandle event, bool* reached) override {
    const cudaError_t state = cudaEventQuery(AsEvent(event));
    *reached = state == cudaSuccess;
    const DeviceError error = Code(state);
    return state == cudaErrorNotReady ? 0 : error;
  }

  // Of this thread only: communicators have threads of their own that may call CUDA meanwhile.
  DeviceError BeginCapture(StreamHandle stream) override {
    return Code(cudaStreamBeginCapture(AsStream(stream), cudaStreamCaptureModeThreadLocal));
  }
  DeviceError EndCapture(StreamHandle stream, GraphHandle* graph) override {
    *graph = nullptr;
    cudaGraph_t captured = nullptr;
    DeviceError error = Code(cudaStreamEndCapture(AsStream(stream), &captured));
    if (error != 0) return error;
    cudaGraphExec_t ready = nullptr;
    error = Code(cudaGraphInstantiate(&ready, captured, 0));
    const DeviceError destroyed = Code(cudaGraphDestroy(captured));
    if (error != 0) return error;
    error = destroyed != 0 ? destroyed : Code(cudaGraphUpload(ready, AsStream(stream)));
    if (error != 0) {
      Code(cudaGraphExecDestroy(ready));
      return error;
    }
    *graph = ready;
    return 0;
  }
  DeviceError Launch(GraphHandle graph, StreamHandle stream) override {
    return Code(cudaGraphLaunch(AsGraph(graph), AsStream(stream)));
  }
  DeviceError DestroyGraph(GraphHandle graph) override {
    return Code(cudaGraphExecDestroy(AsGraph(graph)));
  }

  bool IsOutOfMemory(DeviceError error) const override {
    return error == static_cast<DeviceError>(cudaErrorMemoryAllocation);
  }
  std::string ErrorText(DeviceError error) const override {
    const auto code = static_cast<cudaError_t>(error);
    return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
  }

 private:
  const int ordinal_;
  const DeviceProperties properties_;
};

Status ToStatus(DeviceError error, const std::string& what) {
  const auto code = static_cast<cudaError_t>(error);
  return Unsupported("device cuda: " + what + ": " + cudaGetErrorString(code));
}

StatusOr<DeviceProperties> PropertiesOf(int ordinal) {
  cudaDeviceProp from = {};
  if (const DeviceError error = Code(cudaGetDeviceProperties(&from, ordinal)); error != 0) {
    return ToStatus(error, "GPU " + std::to_string(ordinal));
  }
  DeviceProperties properties;
  properties.name = from.name;
  properties.compute_capability = from.major * 10 + from.minor;
  properties.multiprocessors = from.multiProcessorCount;
  properties.memory_bytes = static_cast<int64_t>(from.totalGlobalMem);
  properties.shared_bytes_per_block = static_cast<int64_t>(from.sharedMemPerBlockOptin);
  return properties;
}

}  // namespace

StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime(int ordinal) {
  int devices = 0;
  if (const DeviceError error = Code(cudaGetDeviceCount(&devices)); error != 0) {
    return ToStatus(error, "no GPU can be used");
  }
  if (ordinal < 0 || ordinal >= devices) {
    return Unsupported("device cuda: there is no GPU " + std::to_string(ordinal) + " among " +
                       std::to_string(devices));
  }
  StatusOr<DeviceProperties> properties = PropertiesOf(ordinal);
  if (!properties.ok()) return properties.status();
  if (properties->compute_capability < kOldestCapability) {
    return Unsupported("device cuda: " + properties->name + " has compute capability " +
                       std::to_string(properties->compute_capability / 10) + "." +
                       std::to_string(properties->compute_capability % 10) +
                       "; 8.0 is the oldest that there are kernels for");
  }
  std::unique_ptr<Runtime> runtime = std::make_unique<CudaRuntime>(ordinal, *properties);
  if (const DeviceError error = runtime->MakeCurrent(); error != 0) {
    return ToStatus(error, "GPU " + std::to_string(ordinal) + " cannot be used");
  }
  return runtime;
}

}  // namespace cuda

int CudaDeviceCount() {
  int devices = 0;
  return cuda::Code(cudaGetDeviceCount(&devices)) == 0 ? devices : 0;
}

}  // namespace qserve::kernels
