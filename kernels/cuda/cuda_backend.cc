// CudaBackend: memory and what passes between host and device outside of operations, which are in
// cuda_backend_ops.cc.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "common/check.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kMostHeadroom = int64_t{1} << 30;
constexpr int kMostThreads = 64;
// Beyond this many rows a linear is not split over its columns, so that it wants no memory.
constexpr int64_t kMostLinearTokens = 8192;

CudaBackendOptions Completed(CudaBackendOptions options) {
  options.threads = std::clamp(options.threads, 1, kMostThreads);
  return options;
}

// A multiprocessor has a kilobyte more than the largest block may use.
AttentionDevice AttentionDeviceOf(const DeviceProperties& device) {
  return {.multiprocessors = device.multiprocessors,
          .shared_bytes = device.shared_bytes_per_block + 1024};
}

// The weight in its one buffer, see kernels/quant/gpu_weight.h.
std::vector<uint8_t> PackOnThreads(const LinearWeight& weight, const GpuWeightLayout& layout,
                                   int threads) {
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes));
  const int64_t parts = std::clamp<int64_t>(layout.row_tiles, 1, threads);
  std::vector<std::jthread> others;
  const auto pack = [&](int64_t part) {
    PackGpuRowTiles(weight, layout, layout.row_tiles * part / parts,
                    layout.row_tiles * (part + 1) / parts, packed.data());
  };
  for (int64_t part = 1; part < parts; ++part) others.emplace_back(pack, part);
  pack(0);
  others.clear();  // joins
  return packed;
}

}  // namespace

int64_t DefaultHeadroom(int64_t memory_bytes) { return std::min(kMostHeadroom, memory_bytes / 16); }

CudaBackend::CudaBackend(std::unique_ptr<Runtime> runtime, const CudaBackendOptions& options)
    : options_(Completed(options)),
      runtime_(std::move(runtime)),
      arena_(runtime_.get(), options_.memory),
      runner_(runtime_.get(), &arena_, options_.staging_bytes),
      transfer_(runtime_.get(), options_.transfer_bytes),
      workspace_(runtime_.get(), &arena_, &runner_),
      attention_(&runner_, AttentionDeviceOf(runtime_->properties())),
      linear_machine_{.multiprocessors = runtime_->properties().multiprocessors,
                      .shared_bytes_per_block = runtime_->properties().shared_bytes_per_block} {
  const DeviceProperties& device = runtime_->properties();
  info_.name = device.name;
  // The order of sums inside a floating-point matrix instruction is the architecture's own.
  info_.kernel_family = "cuda-mma-sm" + std::to_string(device.compute_capability);
  info_.isa = "sm_" + std::to_string(device.compute_capability);
  info_.memory_bytes = device.memory_bytes;
  info_.activation_type = options_.activation_type;
  info_.asynchronous = true;
}

StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(std::unique_ptr<Runtime> runtime,
                                                           const CudaBackendOptions& options) {
  if (options.activation_type == FloatType::kF32) {
    return InvalidArgument("cuda: activations are fp16 or bf16");
  }
  std::unique_ptr<CudaBackend> backend(new CudaBackend(std::move(runtime), options));
  if (Status status = backend->runner_.Create(); !status.ok()) return status;
  return backend;
}

CudaBackend::~CudaBackend() {
  runtime_->MakeCurrent();
  runner_.Synchronize();
}

StatusOr<Buffer> CudaBackend::Allocate(int64_t bytes, std::string_view purpose) {
  if (bytes < 0) return InvalidArgument("cuda: negative allocation for " + std::string(purpose));
  if (bytes == 0) return Buffer();
  runtime_->MakeCurrent();
  StatusOr<void*> memory = arena_.Allocate(bytes, purpose);
  if (!memory.ok()) return memory.status();
  const DeviceError error = runtime_->FillAsync(*memory, 0, bytes, runner_.stream());
  if (error != 0) {
    arena_.Free(*memory);
    return Status(StatusCode::kDevice,
                  "cuda: memory for " + std::string(purpose) + ": " + runtime_->ErrorText(error));
  }
  return Buffer(this, *memory, bytes);
}

int64_t CudaBackend::AvailableMemory() const {
  runtime_->MakeCurrent();  // or another device's would be told
  return arena_.Available();
}

// What is on the stream may still use it.
void CudaBackend::Free(void* data, int64_t /*bytes*/) {
  QSERVE_CHECK(!runner_.Recording());
  runner_.Synchronize();
  arena_.Free(data);
}

void CudaBackend::CopyToDevice(void* device, const void* host, int64_t bytes) {
  if (bytes <= 0 || !runner_.Wanted()) return;
  if (runner_.PlacesAreFixed()) {
    return Fail(InvalidArgument("cuda: a copy from the host in the recorded part of a step"));
  }
  runtime_->MakeCurrent();
  runner_.Check(transfer_.ToDevice(device, host, bytes, runner_.stream()), "copy to the device");
}

void CudaBackend::CopyToHost(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0 || !runner_.Wanted()) return;
  if (runner_.PlacesAreFixed()) {
    return Fail(InvalidArgument("cuda: a copy to the host in the recorded part of a step"));
  }
  runtime_->MakeCurrent();
  runner_.Check(transfer_.ToHost(host, device, bytes, runner_.stream()), "copy to the host");
}

StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::Pack(const LinearWeight& weight) {
  if (Status status = Validate(weight); !status.ok()) return status;
  if (!HasGpuOrder(weight.format)) return PackFloats(weight);
  auto linear = std::make_unique<CudaLinear>();
  linear->layout = GpuLayoutOf(weight);
  linear->format = weight.format;
  linear->n = weight.n;
  linear->k = weight.k;
  linear->lead = weight.lead;
  linear->bytes = linear->layout.bytes;
  StatusOr<Buffer> memory = Allocate(linear->bytes, "weights");
  if (!memory.ok()) return memory.status();
  linear->memory = *std::move(memory);
  const std::vector<uint8_t> packed = PackOnThreads(weight, linear->layout, options_.threads);
  CopyToDevice(linear->memory.data(), packed.data(), linear->bytes);
  const LinearWorkspace most =
      LargestLinearWorkspace(linear_machine_, linear->layout, kMostLinearTokens);
  linear_sums_bytes_ = std::max(linear_sums_bytes_, most.sums_bytes);
  return std::unique_ptr<PackedLinear>(std::move(linear));
}

StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::PackFloats(const LinearWeight& weight) {
  auto linear = std::make_unique<CudaLinear>();
  linear->format = weight.format;
  linear->float_type = weight.float_type;
  linear->n = weight.n;
  linear->k = weight.k;
  const auto upload = [&](const void* from, int64_t bytes, Buffer& to) -> Status {
    StatusOr<Buffer> memory = Allocate(bytes, "weights");
    if (!memory.ok()) return memory.status();
    to = *std::move(memory);
    CopyToDevice(to.data(), from, bytes);
    linear->bytes += bytes;
    return {};
  };
  const auto bias_bytes = std::ssize(weight.bias) * static_cast<int64_t>(sizeof(float));
  Status status = upload(weight.floats.data(), std::ssize(weight.floats), linear->memory);
  if (status.ok()) status = upload(weight.bias.data(), bias_bytes, linear->bias);
  if (!status.ok()) return status;
  return std::unique_ptr<PackedLinear>(std::move(linear));
}

void CudaBackend::ReadAtFinish(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0 || !runner_.Wanted()) return;
  if (!runner_.InStep()) return CopyToHost(host, device, bytes);
  runner_.ReadBack(device, bytes, [host](std::span<const std::byte> read) {
    std::memcpy(host, read.data(), read.size());
  });
}

}  // namespace qserve::kernels::cuda
