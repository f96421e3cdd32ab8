// The one file that knows NCCL. Compiled where CUDA is built in; elsewhere no_nccl.cc stands in its
// place.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/nccl_rendezvous.h"

namespace qserve::worker::comm {
namespace {

cudaStream_t StreamOf(kernels::cuda::StreamHandle stream) {
  return static_cast<cudaStream_t>(stream);
}

class NcclLibrary final : public NcclApi {
 public:
  // Of the GPU that is current on the calling thread.
  NcclLibrary() { Check(cudaGetDevice(&device_)); }

  ~NcclLibrary() override {
    if (mark_ != nullptr) Check(cudaEventDestroy(mark_));
    if (comm_ != nullptr && disconnected_) Check(ncclCommDestroy(comm_));
  }

  NcclResult NewId(std::string* id) override {
    ncclUniqueId made;
    const NcclResult result = Check(ncclGetUniqueId(&made));
    id->assign(made.internal, sizeof made.internal);
    return result;
  }

  NcclResult Connect(int size, int rank, const std::string& id) override {
    ncclUniqueId shared;
    if (id.size() != sizeof shared.internal) {
      text_ = fmt::format("an id of {} bytes", id.size());
      return NcclResult::kFailed;
    }
    std::memcpy(shared.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (Check(cudaEventCreateWithFlags(&mark_, cudaEventDisableTiming)) == NcclResult::kFailed) {
      return NcclResult::kFailed;
    }
    return Check(ncclCommInitRankConfig(&comm_, size, shared, rank, &config));
  }

  NcclResult State() override {
    ncclResult_t state = ncclSuccess;
    const NcclResult asked = Check(ncclCommGetAsyncError(comm_, &state));
    return asked == NcclResult::kFailed ? asked : Check(state);
  }

  NcclResult GroupStart() override { return Check(ncclGroupStart()); }
  NcclResult GroupEnd() override { return Check(ncclGroupEnd()); }
  NcclResult Send(const void* data, int64_t bytes, int peer,
                  kernels::cuda::StreamHandle stream) override {
    return Check(
        ncclSend(data, static_cast<size_t>(bytes), ncclUint8, peer, comm_, StreamOf(stream)));
  }
  NcclResult Receive(void* data, int64_t bytes, int peer,
                     kernels::cuda::StreamHandle stream) override {
    return Check(
        ncclRecv(data, static_cast<size_t>(bytes), ncclUint8, peer, comm_, StreamOf(stream)));
  }
  NcclResult AllGather(const void* mine, void* all, int64_t bytes,
                       kernels::cuda::StreamHandle stream) override {
    return Check(
        ncclAllGather(mine, all, static_cast<size_t>(bytes), ncclUint8, comm_, StreamOf(stream)));
  }
  NcclResult Broadcast(void* data, int64_t bytes, int root,
                       kernels::cuda::StreamHandle stream) override {
    return Check(ncclBroadcast(data, data, static_cast<size_t>(bytes), ncclUint8, root, comm_,
                               StreamOf(stream)));
  }

  NcclResult Mark(kernels::cuda::StreamHandle stream) override {
    return Check(cudaEventRecord(mark_, StreamOf(stream)));
  }

  NcclResult MarkState() override {
    // The watchdog's thread has no GPU of its own accord, and asking without one would wake GPU 0.
    if (Check(cudaSetDevice(device_)) == NcclResult::kFailed) return NcclResult::kFailed;
    // Another thread may be recording a graph: this query is no part of it and must not end it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    Check(cudaThreadExchangeStreamCaptureMode(&mode));
    const cudaError_t error = cudaEventQuery(mark_);
    Check(cudaThreadExchangeStreamCaptureMode(&mode));
    return error == cudaErrorNotReady ? NcclResult::kInProgress : Check(error);
  }

  void Abort() override {
    ncclComm_t comm = comm_;
    comm_ = nullptr;
    if (comm != nullptr) Check(ncclCommAbort(comm));
  }

  NcclResult Disconnect() override {
    if (Check(cudaSetDevice(device_)) == NcclResult::kFailed) return NcclResult::kFailed;
    disconnected_ = true;
    return Check(ncclCommFinalize(comm_));
  }

  std::string ErrorText() const override { return text_; }

 private:
  NcclResult Check(ncclResult_t result) {
    if (result == ncclSuccess) return NcclResult::kOk;
    if (result == ncclInProgress) return NcclResult::kInProgress;
    text_ = fmt::format("{} ({})", ncclGetErrorString(result), ncclGetLastError(nullptr));
    return NcclResult::kFailed;
  }
  NcclResult Check(cudaError_t error) {
    if (error == cudaSuccess) return NcclResult::kOk;
    text_ = fmt::format("CUDA: {}", cudaGetErrorString(error));
    return NcclResult::kFailed;
  }

  int device_ = 0;
  ncclComm_t comm_ = nullptr;
  cudaEvent_t mark_ = nullptr;
  bool disconnected_ = false;
  std::string text_;
};

// Which GPU is current, wherever it is seen from.
absl::StatusOr<std::string> CurrentGpu() {
  int device = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    return absl::UnavailableError(fmt::format("CUDA: {}", cudaGetErrorString(error)));
  }
  std::string identity;
  for (const char byte : properties.uuid.bytes) {
    identity += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  }
  return identity;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options,
                                                                     group::KeyValueStore* store,
                                                                     kernels::Backend* backend) {
  auto* owner = dynamic_cast<kernels::cuda::CudaStreamOwner*>(backend);
  if (owner == nullptr) {
    return absl::FailedPreconditionError("NCCL connects GPUs, and this backend is none");
  }
  int version = 0;
  ncclGetVersion(&version);
  LOG_DEBUG("NCCL {} connects rank {} of {}", version, options.rank, options.size);
  return ConnectNccl(options, store, backend, owner, std::make_unique<NcclLibrary>());
}

absl::StatusOr<bool> RanksHaveGpusOfTheirOwn(const NcclOptions& options,
                                             group::KeyValueStore* store) {
  ASSIGN_OR_RETURN(const std::string mine, CurrentGpu());
  ASSIGN_OR_RETURN(std::vector<std::string> all, ShareWithAll(options, store, "gpu", mine));
  return AllDiffer(std::move(all));
}

}  // namespace qserve::worker::comm
