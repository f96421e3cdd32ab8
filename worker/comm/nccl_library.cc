// The one file that knows NCCL. Compiled where CUDA is built in; elsewhere no_nccl.cc stands in its
// place. The library is opened when GPUs are to be connected, not before: a third of a gigabyte
// that a single GPU does without.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <type_traits>
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

// What is called of libnccl.
struct NcclFunctions {
  decltype(&::ncclGetVersion) GetVersion = nullptr;
  decltype(&::ncclGetUniqueId) GetUniqueId = nullptr;
  decltype(&::ncclCommInitRankConfig) CommInitRankConfig = nullptr;
  decltype(&::ncclCommGetAsyncError) CommGetAsyncError = nullptr;
  decltype(&::ncclCommAbort) CommAbort = nullptr;
  decltype(&::ncclCommFinalize) CommFinalize = nullptr;
  decltype(&::ncclCommDestroy) CommDestroy = nullptr;
  decltype(&::ncclGroupStart) GroupStart = nullptr;
  decltype(&::ncclGroupEnd) GroupEnd = nullptr;
  decltype(&::ncclSend) Send = nullptr;
  decltype(&::ncclRecv) Recv = nullptr;
  decltype(&::ncclAllGather) AllGather = nullptr;
  decltype(&::ncclBroadcast) Broadcast = nullptr;
  decltype(&::ncclGetErrorString) GetErrorString = nullptr;
  decltype(&::ncclGetLastError) GetLastError = nullptr;
};

// The library stays open until the process ends: NCCL's threads may outlive its communicators.
absl::StatusOr<NcclFunctions> OpenNccl() {
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(fmt::format("NCCL is not on this machine: {}", dlerror()));
  }
  NcclFunctions nccl;
  std::string missing;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find(&nccl.GetVersion, "ncclGetVersion");
  find(&nccl.GetUniqueId, "ncclGetUniqueId");
  find(&nccl.CommInitRankConfig, "ncclCommInitRankConfig");
  find(&nccl.CommGetAsyncError, "ncclCommGetAsyncError");
  find(&nccl.CommAbort, "ncclCommAbort");
  find(&nccl.CommFinalize, "ncclCommFinalize");
  find(&nccl.CommDestroy, "ncclCommDestroy");
  find(&nccl.GroupStart, "ncclGroupStart");
  find(&nccl.GroupEnd, "ncclGroupEnd");
  find(&nccl.Send, "ncclSend");
  find(&nccl.Recv, "ncclRecv");
  find(&nccl.AllGather, "ncclAllGather");
  find(&nccl.Broadcast, "ncclBroadcast");
  find(&nccl.GetErrorString, "ncclGetErrorString");
  find(&nccl.GetLastError, "ncclGetLastError");
  if (!missing.empty()) {
    return absl::UnavailableError("this machine's NCCL is too old: it has no " + missing);
  }
  return nccl;
}

class NcclLibrary final : public NcclApi {
 public:
  // Of the GPU that is current on the calling thread.
  explicit NcclLibrary(const NcclFunctions& nccl) : nccl_(nccl) { Check(cudaGetDevice(&device_)); }

  ~NcclLibrary() override {
    if (mark_ != nullptr) Check(cudaEventDestroy(mark_));
    ncclComm_t const comm = comm_;
    if (comm != nullptr && disconnected_) Check(nccl_.CommDestroy(comm));
  }

  NcclResult NewId(std::string* id) override {
    ncclUniqueId made;
    const NcclResult result = Check(nccl_.GetUniqueId(&made));
    id->assign(made.internal, sizeof made.internal);
    return result;
  }

  NcclResult Connect(int size, int rank, const std::string& id) override {
    ncclUniqueId shared;
    if (id.size() != sizeof shared.internal) {
      return Failed(fmt::format("an id of {} bytes", id.size()));
    }
    std::memcpy(shared.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (Check(cudaEventCreateWithFlags(&mark_, cudaEventDisableTiming)) == NcclResult::kFailed) {
      return NcclResult::kFailed;
    }
    const NcclResult result = Check(nccl_.CommInitRankConfig(&made_, size, shared, rank, &config));
    comm_ = made_;
    return result;
  }

  NcclResult State() override {
    ncclResult_t state = ncclSuccess;
    const NcclResult asked = Check(nccl_.CommGetAsyncError(comm_, &state));
    return asked == NcclResult::kFailed ? asked : Check(state);
  }

  NcclResult GroupStart() override { return Check(nccl_.GroupStart()); }
  NcclResult GroupEnd() override { return Check(nccl_.GroupEnd()); }
  NcclResult Send(const void* data, int64_t bytes, int peer,
                  kernels::cuda::StreamHandle stream) override {
    return Check(
        nccl_.Send(data, static_cast<size_t>(bytes), ncclUint8, peer, comm_, StreamOf(stream)));
  }
  NcclResult Receive(void* data, int64_t bytes, int peer,
                     kernels::cuda::StreamHandle stream) override {
    return Check(
        nccl_.Recv(data, static_cast<size_t>(bytes), ncclUint8, peer, comm_, StreamOf(stream)));
  }
  NcclResult AllGather(const void* mine, void* all, int64_t bytes,
                       kernels::cuda::StreamHandle stream) override {
    return Check(
        nccl_.AllGather(mine, all, static_cast<size_t>(bytes), ncclUint8, comm_, StreamOf(stream)));
  }
  NcclResult Broadcast(void* data, int64_t bytes, int root,
                       kernels::cuda::StreamHandle stream) override {
    return Check(nccl_.Broadcast(data, data, static_cast<size_t>(bytes), ncclUint8, root, comm_,
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
    // NCCL goes back to the device that it found, which on a new thread would be GPU 0.
    Check(cudaSetDevice(device_));
    if (ncclComm_t const comm = comm_.exchange(nullptr)) Check(nccl_.CommAbort(comm));
  }

  NcclResult Disconnect() override {
    if (Check(cudaSetDevice(device_)) == NcclResult::kFailed) return NcclResult::kFailed;
    disconnected_ = true;
    return Check(nccl_.CommFinalize(comm_));
  }

  std::string ErrorText() const override {
    const std::lock_guard lock(text_mutex_);
    return text_;
  }

 private:
  NcclResult Check(ncclResult_t result) {
    if (result == ncclSuccess) return NcclResult::kOk;
    if (result == ncclInProgress) return NcclResult::kInProgress;
    return Failed(
        fmt::format("{} ({})", nccl_.GetErrorString(result), nccl_.GetLastError(nullptr)));
  }
  NcclResult Check(cudaError_t error) {
    if (error == cudaSuccess) return NcclResult::kOk;
    cudaGetLastError();  // or the thread's next launch would return it
    return Failed(fmt::format("CUDA: {}", cudaGetErrorString(error)));
  }
  NcclResult Failed(std::string text) {
    const std::lock_guard lock(text_mutex_);
    text_ = std::move(text);
    return NcclResult::kFailed;
  }

  const NcclFunctions nccl_;
  int device_ = 0;
  ncclComm_t made_ = nullptr;               // where NCCL writes it, perhaps on a thread of its own
  std::atomic<ncclComm_t> comm_ = nullptr;  // null again once aborted
  cudaEvent_t mark_ = nullptr;
  bool disconnected_ = false;
  mutable std::mutex text_mutex_;
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
  ASSIGN_OR_RETURN(const NcclFunctions nccl, OpenNccl());
  int version = 0;
  nccl.GetVersion(&version);
  LOG_DEBUG("NCCL {} connects rank {} of {}", version, options.rank, options.size);
  return ConnectNccl(options, store, backend, owner, std::make_unique<NcclLibrary>(nccl));
}

absl::StatusOr<bool> RanksHaveGpusOfTheirOwn(const NcclOptions& options,
                                             group::KeyValueStore* store) {
  ASSIGN_OR_RETURN(const std::string mine, CurrentGpu());
  ASSIGN_OR_RETURN(std::vector<std::string> all, ShareWithAll(options, store, "gpu", mine));
  return AllDiffer(std::move(all));
}

}  // namespace qserve::worker::comm
