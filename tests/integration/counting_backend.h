// A backend that notes what is asked of another one: shows that a step really is one batch. Test
// programs only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace qserve::tests {

class CountingBackend final : public kernels::Backend {
 public:
  explicit CountingBackend(kernels::Backend& inner) : inner_(inner) {}

  // Rows (M) of every Linear since the last Clear, by its weight, in order.
  std::map<const kernels::PackedLinear*, std::vector<int64_t>> linears;
  int64_t embeds = 0, norms = 0, ropes = 0, attentions = 0, samples = 0;
  void Clear() {
    linears.clear();
    embeds = norms = ropes = attentions = samples = 0;
  }

  const kernels::DeviceInfo& info() const override { return inner_.info(); }
  kernels::StatusOr<kernels::Buffer> Allocate(int64_t bytes, std::string_view purpose) override {
    return inner_.Allocate(bytes, purpose);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    inner_.CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    inner_.CopyToHost(host, device, bytes);
  }
  int64_t AvailableMemory() const override { return inner_.AvailableMemory(); }
  kernels::StatusOr<std::unique_ptr<kernels::PackedLinear>> Pack(
      const kernels::LinearWeight& weight) override {
    return inner_.Pack(weight);
  }
  void Embed(const kernels::EmbedArgs& args) override {
    ++embeds;
    inner_.Embed(args);
  }
  void Norm(const kernels::NormArgs& args) override {
    ++norms;
    inner_.Norm(args);
  }
  void Linear(const kernels::LinearArgs& args) override {
    linears[args.weight].push_back(args.x.rows);
    inner_.Linear(args);
  }
  void RopeAppend(const kernels::RopeAppendArgs& args) override {
    ++ropes;
    inner_.RopeAppend(args);
  }
  void Attention(const kernels::AttentionArgs& args) override {
    ++attentions;
    inner_.Attention(args);
  }
  void SiluMul(const kernels::SiluMulArgs& args) override { inner_.SiluMul(args); }
  void Sample(const kernels::SampleArgs& args) override {
    ++samples;
    inner_.Sample(args);
  }
  kernels::Status Run(uint64_t key, const std::function<void()>& step) override {
    return inner_.Run(key, step);
  }
  void Synchronize() override { inner_.Synchronize(); }
  void Fail(kernels::Status status) override { inner_.Fail(std::move(status)); }

 private:
  void Free(void*, int64_t) override {}  // buffers belong to the inner backend

  kernels::Backend& inner_;
};

}  // namespace qserve::tests
