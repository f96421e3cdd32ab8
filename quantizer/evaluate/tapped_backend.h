// A CPU backend with an ear on its linears: rounds what a block's linears read to int8 and back,
// so that int8 activations can be had beside floating-point weights, and shows what they compute.
// Made by trial.cc around the real backend; the same thread.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "kernels/forwarding_backend.h"
#include "worker/model/activation_observer.h"
#include "worker/model/weights.h"

namespace qserve::quantizer {

// A linear of a block, q|k|v and gate|up being one.
struct LinearPlace {
  int64_t layer = 0;
  worker::model::LinearInput input = worker::model::LinearInput::kQkv;
  auto operator<=>(const LinearPlace&) const = default;
};

class TappedBackend final : public kernels::ForwardingBackend {
 public:
  // `inner` must outlive this and have host memory.
  explicit TappedBackend(kernels::Backend& inner) : ForwardingBackend(inner) {}

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

  void Linear(const kernels::LinearArgs& args) override;

 private:
  void RoundRows(const kernels::Activation& x, const std::vector<float>* divisor);

  std::map<const kernels::PackedLinear*, LinearPlace> places_;
  std::map<LinearPlace, std::vector<float>> divisors_;
  bool round_inputs_ = false;
  Listener listener_;
  std::vector<int8_t> codes_;
};

}  // namespace qserve::quantizer
