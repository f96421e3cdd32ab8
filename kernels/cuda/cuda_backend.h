// A GPU as a Backend: memory from an arena, operations as launches on one stream, steps begun ahead
// and recorded as CUDA graphs (step_runner.h). Over a Runtime, so that the whole of it also runs on
// the emulated GPU in tests. Made by kernels/device_factory.cc by way of cuda_device.cc; one thread
// at a time uses it, but for Fail.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling_plan.h"
#include "kernels/cuda/step_attention.h"
#include "kernels/cuda/step_runner.h"
#include "kernels/cuda/transfer.h"
#include "kernels/cuda/workspace.h"
#include "kernels/quant/gpu_weight.h"

namespace qserve::kernels::cuda {

struct CudaBackendOptions {
  FloatType activation_type = FloatType::kF16;  // or kBf16
  int threads = 1;                              // that pack weights
  Arena::Options memory;
  int64_t staging_bytes = int64_t{4} << 20;   // of a step's inputs, to begin with
  int64_t transfer_bytes = int64_t{8} << 20;  // pieces of large copies
};

// A weight on the device, in GPU order where its format has one.
struct CudaLinear final : PackedLinear {
  GpuWeightLayout layout;                  // of all formats but kFloat
  FloatType float_type = FloatType::kF32;  // of kFloat: memory is [n][k]
  Buffer memory;
  Buffer bias;  // of kFloat, fp32 [n] or none; the others have theirs in `memory`
};

// What is left to graphs, communicators and the driver on a device of that size.
int64_t DefaultHeadroom(int64_t memory_bytes);

class CudaBackend final : public Backend, public CudaStreamOwner {
 public:
  static StatusOr<std::unique_ptr<CudaBackend>> Create(std::unique_ptr<Runtime> runtime,
                                                       const CudaBackendOptions& options);
  ~CudaBackend() override;

  const DeviceInfo& info() const override { return info_; }
  StatusOr<Buffer> Allocate(int64_t bytes, std::string_view purpose) override;
  void CopyToDevice(void* device, const void* host, int64_t bytes) override;
  void CopyToHost(void* host, const void* device, int64_t bytes) override;
  int64_t AvailableMemory() const override;
  std::vector<MemoryUse> MemoryLedger() const override { return arena_.Ledger(); }
  StatusOr<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight) override;

  void Embed(const EmbedArgs& args) override;
  void Norm(const NormArgs& args) override;
  void Linear(const LinearArgs& args) override;
  void RopeAppend(const RopeAppendArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void SiluMul(const SiluMulArgs& args) override;
  void Sample(const SampleArgs& args) override;

  Status Run(uint64_t key, const std::function<void()>& step) override {
    return runner_.Run(key, step);
  }
  Status Begin(uint64_t key, const std::function<void()>& step) override {
    return runner_.Begin(key, step);
  }
  Status Finish() override { return runner_.Finish(); }
  Status Record(uint64_t key, const std::function<void()>& step) override {
    return runner_.Record(key, step);
  }
  void EndRecorded() override { runner_.EndRecorded(); }
  void ReadAtFinish(void* host, const void* device, int64_t bytes) override;
  void Synchronize() override { runner_.Synchronize(); }

  // Of both bases.
  void Fail(Status status) override { runner_.Fail(std::move(status)); }

  StreamHandle stream() override { return runner_.stream(); }
  bool Issuing() const override { return runner_.Issuing(); }
  bool Recording() const override { return runner_.Recording(); }
  void DropGraphs() override { runner_.DropGraphs(); }

 protected:
  void Free(void* data, int64_t bytes) override;

 private:
  CudaBackend(std::unique_ptr<Runtime> runtime, const CudaBackendOptions& options);
  StatusOr<std::unique_ptr<PackedLinear>> PackFloats(const LinearWeight& weight);

  // Runs an operation's body unless the step has failed; one outside a step is a step by itself.
  template <class Body>
  void Operation(const Body& body) {
    if (!runner_.Wanted()) return;
    if (runner_.InStep()) {
      body();
    } else if (Status status = runner_.Run(0, body); !status.ok()) {
      runner_.Fail(std::move(status));
    }
  }

  // Draws as many of `rows` as the staged block holds; how many.
  int64_t SampleSome(const SampleArgs& args, int64_t first_row);

  const CudaBackendOptions options_;
  const std::unique_ptr<Runtime> runtime_;
  DeviceInfo info_;
  Arena arena_;
  StepRunner runner_;
  Transfer transfer_;
  Workspace workspace_;
  StepAttention attention_;
  const LinearMachine linear_machine_;
  int64_t linear_sums_bytes_ = 0;  // the most that any batch of any packed weight wants
  SamplingScratch sampling_scratch_;
};

}  // namespace qserve::kernels::cuda
