// A backend that has memory and nothing else, for tests of what moves bytes between ranks. Its
// memory is host memory; it counts what passes through the copies, and keeps the first failure.
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/backend.h"

namespace qserve::worker::comm {

class HostMemoryBackend final : public kernels::Backend {
 public:
  const kernels::DeviceInfo& info() const override { return info_; }
  kernels::StatusOr<kernels::Buffer> Allocate(int64_t bytes, std::string_view) override {
    return kernels::Buffer(this, std::calloc(1, static_cast<size_t>(bytes)), bytes);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    std::memcpy(device, host, static_cast<size_t>(bytes));
    bytes_in += bytes;
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    std::memcpy(host, device, static_cast<size_t>(bytes));
    bytes_out += bytes;
  }
  int64_t AvailableMemory() const override { return 0; }
  kernels::StatusOr<std::unique_ptr<kernels::PackedLinear>> Pack(
      const kernels::LinearWeight&) override {
    return kernels::Unsupported("this backend has memory only");
  }
  void Embed(const kernels::EmbedArgs&) override { Refuse(); }
  void Norm(const kernels::NormArgs&) override { Refuse(); }
  void Linear(const kernels::LinearArgs&) override { Refuse(); }
  void RopeAppend(const kernels::RopeAppendArgs&) override { Refuse(); }
  void Attention(const kernels::AttentionArgs&) override { Refuse(); }
  void SiluMul(const kernels::SiluMulArgs&) override { Refuse(); }
  void Sample(const kernels::SampleArgs&) override { Refuse(); }
  kernels::Status Run(uint64_t, const std::function<void()>& step) override {
    step();
    return std::exchange(failure_, kernels::Status());
  }
  void Synchronize() override {}
  void Fail(kernels::Status status) override {
    if (failure_.ok()) failure_ = std::move(status);
  }

  int64_t bytes_in = 0;
  int64_t bytes_out = 0;

 protected:
  void Free(void* data, int64_t) override { std::free(data); }

 private:
  void Refuse() { Fail(kernels::Unsupported("this backend has memory only")); }
  kernels::DeviceInfo info_;
  kernels::Status failure_;
};

}  // namespace qserve::worker::comm
