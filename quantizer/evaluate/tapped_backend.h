// A CPU backend with an ear on its linears: rounds what a block's linears read to int8 and back,
// so that int8 activations can be had beside floating-point weights, and shows what they compute.
// Made by measure.cc around the real backend; the same thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "worker/model/activation_observer.h"
#include "worker/model/weights.h"

namespace qserve::quantizer {

// A linear of a block, q|k|v and gate|up being one.
struct LinearPlace {
  int64_t layer = 0;
  worker::model::LinearInput input = worker::model::LinearInput::kQkv;
  auto operator<=>(const LinearPlace&) const = default;
};

class TappedBackend final : public kernels::Backend {
 public:
  // `inner` must outlive this and have host memory.
  explicit TappedBackend(kernels::Backend& inner) : inner_(inner) {}

  // Which linears are meant: those of the blocks, not the head. `weights` must outlive this.
  void Know(const worker::model::ModelWeights& weights);

  // Each row that such a linear reads is rounded to int8 and back, before it is multiplied.
  void RoundInputs() { round_inputs_ = true; }
  // As RoundInputs for one linear, whose columns are divided by `divisor` before rounding and
  // multiplied by it afterwards (smoothing); [columns].
  void SmoothInputs(LinearPlace place, std::vector<float> divisor) {
    divisors_[place] = std::move(divisor);
  }

  // Shown what each of them computed, valid during the call.
  using Listener = std::function<void(LinearPlace, const kernels::FloatMatrix& out)>;
  void Listen(Listener listener) { listener_ = std::move(listener); }

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
  void Embed(const kernels::EmbedArgs& args) override { inner_.Embed(args); }
  void Norm(const kernels::NormArgs& args) override { inner_.Norm(args); }
  void Linear(const kernels::LinearArgs& args) override;
  void RopeAppend(const kernels::RopeAppendArgs& args) override { inner_.RopeAppend(args); }
  void Attention(const kernels::AttentionArgs& args) override { inner_.Attention(args); }
  void SiluMul(const kernels::SiluMulArgs& args) override { inner_.SiluMul(args); }
  void Sample(const kernels::SampleArgs& args) override { inner_.Sample(args); }
  kernels::Status Run(uint64_t key, const std::function<void()>& step) override {
    return inner_.Run(key, step);
  }
  void Synchronize() override { inner_.Synchronize(); }
  void Fail(kernels::Status status) override { inner_.Fail(std::move(status)); }

 protected:
  // Buffers belong to the backend that made them, which is `inner`.
  void Free(void*, int64_t) override {}

 private:
  void RoundRows(const kernels::Activation& x, const std::vector<float>* divisor);

  kernels::Backend& inner_;
  std::map<const kernels::PackedLinear*, LinearPlace> places_;
  std::map<LinearPlace, std::vector<float>> divisors_;
  bool round_inputs_ = false;
  Listener listener_;
  std::vector<int8_t> codes_;
};

}  // namespace qserve::quantizer
