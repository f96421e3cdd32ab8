// CpuBackend: memory, the error latch and forwarding to the op table.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/bf16_panel.h"
#include "kernels/cpu/isa_choice.h"
#include "kernels/cpu/memory_info.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

// No more than a step can use; a mistyped count is refused before threads are started.
constexpr int kMaxThreads = 1024;

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, const OpTable& table, bool bf16_linears)
      : table_(table), bf16_linears_(bf16_linears), pool_(threads), workspace_(threads) {
    info_.name =
        CpuModelName() + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
    info_.kernel_family = bf16_linears ? "cpu-bf16" : "cpu";
    info_.isa = table.isa;
    info_.memory_bytes = TotalMemoryBytes();
    info_.host_memory = true;
  }

  const DeviceInfo& info() const override { return info_; }

  StatusOr<Buffer> Allocate(int64_t bytes, std::string_view purpose) override {
    if (bytes < 0) return InvalidArgument("cpu: negative allocation for " + std::string(purpose));
    if (bytes == 0) return Buffer();
    AlignedMemory memory = AlignedMemory::Allocate(bytes);
    if (memory.data() == nullptr) {
      return Status(StatusCode::kOutOfMemory, "cpu: no memory of " + std::to_string(bytes) +
                                                  " bytes for " + std::string(purpose));
    }
    return Buffer(this, memory.Detach(), bytes);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    Copy(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    Copy(host, device, bytes);
  }
  int64_t AvailableMemory() const override { return AvailableMemoryBytes(); }

  StatusOr<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight) override {
    if (Status status = Validate(weight); !status.ok()) return status;
    return TakesBf16(weight.format) ? PackBf16(pool_, weight) : table_.pack(pool_, weight);
  }
  bool PacksPieces(WeightFormat format) const override {
    return table_.pack_pieces != nullptr && format != WeightFormat::kFloat;
  }
  StatusOr<std::unique_ptr<PackedLinear>> PackPieces(int64_t rows, const RowReader& read) override {
    if (table_.pack_pieces == nullptr) return Backend::PackPieces(rows, read);
    return table_.pack_pieces(pool_, rows, read);
  }

  void Embed(const EmbedArgs& args) override { Call(table_.embed, args); }
  void Norm(const NormArgs& args) override { Call(table_.norm, args); }
  void Linear(const LinearArgs& args) override {
    Call(TakesBf16(args.weight->format) ? table_.linear_bf16 : table_.linear, args);
  }
  void RopeAppend(const RopeAppendArgs& args) override { Call(table_.rope_append, args); }
  void Attention(const AttentionArgs& args) override { Call(table_.attention, args); }
  void SiluMul(const SiluMulArgs& args) override { Call(table_.silu_mul, args); }
  void Sample(const SampleArgs& args) override { Call(table_.sample, args); }

  Status Run(uint64_t /*key*/, const std::function<void()>& step) override {
    step();
    return std::exchange(failure_, Status());
  }
  Status BindThread(int thread, int processor) override {
    return pool_.BindThread(thread, processor);
  }
  void Synchronize() override {}
  void Fail(Status status) override {
    if (failure_.ok()) failure_ = std::move(status);
  }

 protected:
  void Free(void* data, int64_t bytes) override { AlignedMemory::Release(data, bytes); }

 private:
  bool TakesBf16(WeightFormat format) const {
    return bf16_linears_ && format == WeightFormat::kFloat;
  }
  void Copy(void* to, const void* from, int64_t bytes) const {
    if (bytes > 0 && failure_.ok()) std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  template <class Args>
  void Call(Status (*op)(OpContext&, const Args&), const Args& args) {
    if (!failure_.ok()) return;
    OpContext context{pool_, workspace_};
    failure_ = op(context, args);
  }

  const OpTable& table_;
  const bool bf16_linears_;
  ThreadPool pool_;
  Workspace workspace_;
  DeviceInfo info_;
  Status failure_;
};

}  // namespace

StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int threads, const std::string& isa,
                                                    FloatType linear_type) {
  if (threads < 0 || threads > kMaxThreads) {
    return InvalidArgument("cpu: " + std::to_string(threads) + " threads; 0 (all cores) to " +
                           std::to_string(kMaxThreads) + " are possible");
  }
  if (linear_type != FloatType::kF32 && linear_type != FloatType::kBf16) {
    return Unsupported("cpu: full-precision linears are multiplied as fp32 or bf16 alone");
  }
  StatusOr<const OpTable*> table = ChooseOpTable(isa);
  if (!table.ok()) return table.status();
  if (threads == 0)
    threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  return CreateCpuBackend(threads, **table, linear_type == FloatType::kBf16);
}

std::unique_ptr<Backend> CreateCpuBackend(int threads, const OpTable& table, bool bf16_linears) {
  return std::make_unique<CpuBackend>(threads, table, bf16_linears);
}

}  // namespace qserve::kernels::cpu
