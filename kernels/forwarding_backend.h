// A backend that hands every call to another one: the base of those that listen to or measure a
// real backend and override only what they change. What the inner backend calls of itself (Pack by
// PackPieces, Run by Begin) does not come back through an override. The same thread as any backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kernels/backend.h"

namespace qserve::kernels {

// One override for each virtual function of Backend; tests/tidy looks.
class ForwardingBackend : public Backend {
 public:
  // `inner` must outlive this. It owns the buffers and the weights that are made through this.
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  const DeviceInfo& info() const override { return inner_.info(); }

  StatusOr<Buffer> Allocate(int64_t bytes, std::string_view purpose) override {
    return inner_.Allocate(bytes, purpose);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    inner_.CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    inner_.CopyToHost(host, device, bytes);
  }
  int64_t AvailableMemory() const override { return inner_.AvailableMemory(); }
  std::vector<MemoryUse> MemoryLedger() const override { return inner_.MemoryLedger(); }

  Status BindThread(int thread, int processor) override {
    return inner_.BindThread(thread, processor);
  }

  StatusOr<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight) override {
    return inner_.Pack(weight);
  }
  bool PacksPieces(WeightFormat format) const override { return inner_.PacksPieces(format); }
  StatusOr<std::unique_ptr<PackedLinear>> PackPieces(int64_t rows, const RowReader& read) override {
    return inner_.PackPieces(rows, read);
  }

  void Embed(const EmbedArgs& args) override { inner_.Embed(args); }
  void Norm(const NormArgs& args) override { inner_.Norm(args); }
  void Linear(const LinearArgs& args) override { inner_.Linear(args); }
  void RopeAppend(const RopeAppendArgs& args) override { inner_.RopeAppend(args); }
  void Attention(const AttentionArgs& args) override { inner_.Attention(args); }
  void SiluMul(const SiluMulArgs& args) override { inner_.SiluMul(args); }
  void Sample(const SampleArgs& args) override { inner_.Sample(args); }

  Status Run(uint64_t key, const std::function<void()>& step) override {
    return inner_.Run(key, step);
  }
  Status Begin(uint64_t key, const std::function<void()>& step) override {
    return inner_.Begin(key, step);
  }
  Status Finish() override { return inner_.Finish(); }
  Status Record(uint64_t key, const std::function<void()>& step) override {
    return inner_.Record(key, step);
  }
  void EndRecorded() override { inner_.EndRecorded(); }
  void ReadAtFinish(void* host, const void* device, int64_t bytes) override {
    inner_.ReadAtFinish(host, device, bytes);
  }

  void Synchronize() override { inner_.Synchronize(); }
  void Fail(Status status) override { inner_.Fail(std::move(status)); }

 protected:
  void Free(void* /*data*/, int64_t /*bytes*/) override {
    QSERVE_CHECK(false && "buffers belong to the inner backend");
  }

 private:
  Backend& inner_;
};

}  // namespace qserve::kernels
