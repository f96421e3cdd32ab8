// See tapped_backend.h.
#include "quantizer/evaluate/tapped_backend.h"

#include "common/check.h"
#include "kernels/quant/activation_quant.h"

namespace qserve::quantizer {

using worker::model::LinearInput;

void TappedBackend::Know(const worker::model::ModelWeights& weights) {
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const worker::model::LayerWeights& layer = weights.layers[i];
    const auto index = static_cast<int64_t>(i);
    places_[layer.qkv.get()] = {index, LinearInput::kQkv};
    places_[layer.o.get()] = {index, LinearInput::kO};
    places_[layer.feed_forward.gate_up.get()] = {index, LinearInput::kGateUp};
    places_[layer.feed_forward.down.get()] = {index, LinearInput::kDown};
  }
}

void TappedBackend::Linear(const kernels::LinearArgs& args) {
  const auto place = places_.find(args.weight);
  if (place == places_.end()) return ForwardingBackend::Linear(args);
  // A weight that takes int8 has its rows rounded by the real kernels.
  if (round_inputs_ && !kernels::TakesInt8(args.weight->format)) {
    const auto divisor = divisors_.find(place->second);
    RoundRows(args.x, divisor == divisors_.end() ? nullptr : &divisor->second);
  }
  ForwardingBackend::Linear(args);
  if (listener_) listener_(place->second, args.out);
}

// In place: nobody else reads a linear's input once it is multiplied.
void TappedBackend::RoundRows(const kernels::Activation& x, const std::vector<float>* divisor) {
  codes_.resize(static_cast<size_t>(x.cols));
  QSERVE_CHECK(divisor == nullptr || std::ssize(*divisor) == x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    float* row = x.f32 + r * x.f32_stride;
    for (int64_t c = 0; divisor != nullptr && c < x.cols; ++c)
      row[c] /= (*divisor)[static_cast<size_t>(c)];
    const float scale = kernels::QuantizeRow(row, x.cols, codes_.data()).scale;
    for (int64_t c = 0; c < x.cols; ++c) {
      row[c] = static_cast<float>(codes_[static_cast<size_t>(c)]) * scale;
      if (divisor != nullptr) row[c] *= (*divisor)[static_cast<size_t>(c)];
    }
  }
}

}  // namespace qserve::quantizer
