// What an ActivationObserver of a Llama sees. Nothing here runs while serving.
#include <cmath>
#include <cstddef>
#include <utility>

#include "kernels/quant/half.h"
#include "worker/model/llama.h"

namespace qserve::worker::model {
namespace {

using kernels::ConstFloatMatrix;
using kernels::Matrix;

std::vector<float> CopyRows(kernels::Backend& backend, const ConstFloatMatrix& device) {
  std::vector<float> host(static_cast<size_t>(device.rows * device.cols));
  const int64_t row_bytes = device.cols * kernels::BytesOf(device.type);
  std::vector<std::byte> row(static_cast<size_t>(row_bytes));
  for (int64_t r = 0; r < device.rows; ++r) {
    const auto* from = static_cast<const std::byte*>(device.data) +
                       r * device.stride * kernels::BytesOf(device.type);
    backend.CopyToHost(row.data(), from, row_bytes);
    kernels::WidenFloats(device.type, row.data(), device.cols, host.data() + r * device.cols);
  }
  return host;
}

Matrix<const float> View(const std::vector<float>& values, int64_t rows) {
  const int64_t cols = rows == 0 ? 0 : std::ssize(values) / rows;
  return {values.data(), rows, cols, cols};
}

void NormHead(float* head, int64_t head_dim, const std::vector<float>& gain, float epsilon) {
  double square = 0;
  for (int64_t i = 0; i < head_dim; ++i) square += double{head[i]} * head[i];
  const double scale = 1 / std::sqrt(square / static_cast<double>(head_dim) + epsilon);
  for (int64_t i = 0; i < head_dim; ++i) {
    head[i] = static_cast<float>(head[i] * scale) * gain[static_cast<size_t>(i)];
  }
}

void RotateHead(float* head, int64_t head_dim, const float* cos_sin) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos_sin[i] - b * cos_sin[half + i];
    head[i + half] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

}  // namespace

// RopeAppend leaves the k columns undefined, so that they are taken before it and rotated here.
std::vector<float> Llama::KeysBeforeRope(int64_t tokens) {
  if (options_.observer == nullptr) return {};
  const int64_t head_dim = config_.head_dim;
  return CopyRows(backend_, kernels::Columns(qkv_.First(tokens), shard_.local_heads() * head_dim,
                                             shard_.local_kv_heads() * head_dim));
}

void Llama::ObserveInput(int64_t layer, LinearInput linear, const kernels::Activation& x) {
  if (options_.observer == nullptr) return;
  const std::vector<float> host =
      CopyRows(backend_, Matrix<const float>{x.f32, x.rows, x.cols, x.f32_stride});
  options_.observer->OnLinearInput(layer, linear, View(host, x.rows));
}

void Llama::ObserveRotated(int64_t layer, const StepInputs& inputs, std::vector<float> keys) {
  if (options_.observer == nullptr) return;
  const int64_t tokens = std::ssize(inputs.token_ids), head_dim = config_.head_dim;
  const int64_t key_columns = shard_.local_kv_heads() * head_dim;
  std::vector<float> gain(static_cast<size_t>(head_dim));
  const kernels::Buffer& device_gain = weights_.layers[static_cast<size_t>(layer)].k_gain;
  if (config_.qk_norm)
    backend_.CopyToHost(gain.data(), device_gain.data(), head_dim * int64_t{sizeof(float)});
  for (const kernels::SequenceSpan& sequence : inputs.sequences) {
    for (int64_t i = 0; i < sequence.row_count; ++i) {
      const float* cos_sin = host_cos_sin_.data() + (sequence.first_position + i) * head_dim;
      for (int head = 0; head < shard_.local_kv_heads(); ++head) {
        float* key = keys.data() + (sequence.first_row + i) * key_columns + head * head_dim;
        if (config_.qk_norm) NormHead(key, head_dim, gain, config_.rms_norm_eps);
        RotateHead(key, head_dim, cos_sin);
      }
    }
  }
  const std::vector<float> queries =
      CopyRows(backend_, kernels::Columns(qkv_.First(tokens), 0, shard_.local_heads() * head_dim));
  options_.observer->OnRotated(layer, View(queries, tokens), View(keys, tokens));
}

// The residual of the block is only added up by the next norm: here it is done on a copy.
void Llama::ObserveBlockOutput(int64_t layer, int64_t tokens) {
  if (options_.observer == nullptr) return;
  std::vector<float> sum = CopyRows(backend_, residual_.First(tokens));
  const std::vector<float> delta = CopyRows(backend_, delta_.First(tokens));
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
  options_.observer->OnBlockOutput(layer, View(sum, tokens));
}

}  // namespace qserve::worker::model
