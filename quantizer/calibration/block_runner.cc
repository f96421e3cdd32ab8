// See block_runner.h.
#include "quantizer/calibration/block_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/ops.h"
#include "kernels/quant/half.h"
#include "quantizer/calibration/gram.h"
#include "worker/model/device_status.h"
#include "worker/model/rope.h"

namespace qserve::quantizer::calibration {

using worker::model::FloatRows;
using worker::model::ToAbsl;

absl::StatusOr<std::unique_ptr<BlockRunner>> BlockRunner::Create(
    const worker::checkpoint::ModelConfig& config, kernels::Backend& backend, int64_t length) {
  std::unique_ptr<BlockRunner> runner(new BlockRunner(config, backend, length));
  RETURN_IF_ERROR(runner->Allocate());
  return runner;
}

absl::Status BlockRunner::Allocate() {
  const int64_t width = int64_t{config_.heads + 2 * config_.kv_heads} * config_.head_dim;
  const auto rows = [&](FloatRows& to, int64_t cols) -> absl::Status {
    ASSIGN_OR_RETURN(to,
                     FloatRows::Create(backend_, backend_.info().activation_type, length_, cols));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(rows(hidden_, config_.hidden_size));
  ASSIGN_OR_RETURN(
      delta_, FloatRows::Create(backend_, kernels::FloatType::kF32, length_, config_.hidden_size));
  RETURN_IF_ERROR(rows(qkv_, width));
  RETURN_IF_ERROR(rows(gate_up_, 2 * config_.intermediate_size));
  const int64_t pages = (length_ + kernels::kKvPageTokens - 1) / kernels::kKvPageTokens;
  block_table_.resize(static_cast<size_t>(pages));
  std::iota(block_table_.begin(), block_table_.end(), 0);
  const kernels::KvShape widest = {exact_kv(), config_.kv_heads, config_.head_dim};
  ASSIGN_OR_RETURN(pages_,
                   ToAbsl(backend_.Allocate(pages * kernels::KvPageBytes(widest), "kv cache")));
  ASSIGN_OR_RETURN(host_cos_sin_, worker::model::MakeRopeTable(config_, length_));
  ASSIGN_OR_RETURN(
      cos_sin_, Upload(Eigen::Map<const VectorF>(host_cos_sin_.data(), std::ssize(host_cos_sin_))));
  return absl::OkStatus();
}

absl::StatusOr<kernels::Buffer> BlockRunner::Upload(const VectorF& values) {
  const int64_t bytes = values.size() * int64_t{sizeof(float)};
  ASSIGN_OR_RETURN(kernels::Buffer buffer, ToAbsl(backend_.Allocate(bytes, "calibration")));
  backend_.CopyToDevice(buffer.data(), values.data(), bytes);
  return buffer;
}

absl::StatusOr<DeviceBlock> BlockRunner::Load(const BlockWeights& block,
                                              kernels::KvFormat kv_format) {
  DeviceBlock device;
  device.layer = block.layer;
  device.kv_format = kv_format;
  ASSIGN_OR_RETURN(device.input_gain, Upload(block.input_gain));
  ASSIGN_OR_RETURN(device.post_attention_gain, Upload(block.post_attention_gain));
  RETURN_IF_ERROR(ReplaceHeadGains(block, device));
  for (const Stage stage : {Stage::kQkv, Stage::kO, Stage::kGateUp, Stage::kDown}) {
    RETURN_IF_ERROR(Replace(stage, block, device));
  }
  return device;
}

absl::Status BlockRunner::ReplaceHeadGains(const BlockWeights& block, DeviceBlock& device) {
  if (block.q_gain.size() == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(device.q_gain, Upload(block.q_gain));
  ASSIGN_OR_RETURN(device.k_gain, Upload(block.k_gain));
  return absl::OkStatus();
}

absl::Status BlockRunner::Replace(Stage stage, const BlockWeights& block, DeviceBlock& device) {
  static const std::array<std::vector<LinearIndex>, 4> kParts = {
      {{kQ, kK, kV}, {kO}, {kGate, kUp}, {kDown}}};
  std::vector<kernels::LinearWeight> floats;
  for (const LinearIndex i : kParts[static_cast<size_t>(stage)]) {
    floats.push_back(ToKernelWeight(block[i]));
  }
  std::vector<const kernels::LinearWeight*> parts;
  for (const kernels::LinearWeight& part : floats) parts.push_back(&part);
  return Replace(stage, parts, device);
}

absl::Status BlockRunner::Replace(Stage stage,
                                  const std::vector<const kernels::LinearWeight*>& parts,
                                  DeviceBlock& device) {
  ASSIGN_OR_RETURN(const kernels::LinearWeight whole, ToAbsl(kernels::ConcatenateRows(parts)));
  DeviceLinear& to = device[stage];
  to = {};
  ASSIGN_OR_RETURN(to.weight, ToAbsl(backend_.Pack(whole)));
  ASSIGN_OR_RETURN(to.input, worker::model::LinearInputRows::Create(backend_, length_, *to.weight,
                                                                    /*keep_floats=*/true));
  return absl::OkStatus();
}

kernels::KvFormat BlockRunner::exact_kv() const {
  return backend_.info().activation_type == kernels::FloatType::kF32 ? kernels::KvFormat::kF32
                                                                     : kernels::KvFormat::kF16;
}

void BlockRunner::PutHidden(const MatrixF& hidden) {
  QSERVE_CHECK(hidden.rows() <= length_ && hidden.cols() == config_.hidden_size);
  const kernels::FloatMatrix to = hidden_.First(hidden.rows());
  if (to.type == kernels::FloatType::kF32) {
    backend_.CopyToDevice(to.data, hidden.data(), hidden.size() * int64_t{sizeof(float)});
    return;
  }
  std::vector<uint16_t> narrow(static_cast<size_t>(hidden.size()));
  std::transform(hidden.data(), hidden.data() + hidden.size(), narrow.begin(), [&](float x) {
    return to.type == kernels::FloatType::kF16 ? kernels::FloatToHalf(x) : kernels::FloatToBf16(x);
  });
  backend_.CopyToDevice(to.data, narrow.data(), std::ssize(narrow) * int64_t{sizeof(uint16_t)});
}

MatrixF BlockRunner::TakeInput(const DeviceLinear& linear, int64_t tokens) const {
  const kernels::Activation x = linear.input.First(tokens);
  MatrixF values(tokens, x.cols);
  backend_.CopyToHost(values.data(), x.f32, values.size() * int64_t{sizeof(float)});
  return values;
}

void BlockRunner::Norm(const kernels::Buffer& gain, const DeviceLinear& linear, int64_t tokens) {
  kernels::ops::Norm(backend_, {.residual = hidden_.First(tokens),
                                .delta = {},
                                .gain = gain.as<float>(),
                                .epsilon = config_.rms_norm_eps,
                                .rows = {},
                                .out = linear.input.First(tokens)});
}

// hidden_ -> input of o.
void BlockRunner::RunAttention(const DeviceBlock& block, int64_t tokens) {
  const kernels::KvShape kv = {block.kv_format, config_.kv_heads, config_.head_dim};
  const kernels::KvLayer layer = {pages_.data(), kernels::KvPageBytes(kv)};
  const std::vector<kernels::SequenceSpan> sequences = {
      {.first_row = 0, .row_count = tokens, .first_position = 0, .block_table = block_table_}};
  const kernels::FloatMatrix qkv = qkv_.First(tokens);
  Norm(block.input_gain, block[Stage::kQkv], tokens);
  kernels::ops::Linear(backend_, {.weight = block[Stage::kQkv].weight.get(),
                                  .x = block[Stage::kQkv].input.First(tokens),
                                  .out = qkv});
  kernels::ops::RopeAppend(backend_, {.qkv = qkv,
                                      .heads = config_.heads,
                                      .kv = kv,
                                      .cos_sin = cos_sin_.as<float>(),
                                      .q_gain = block.q_gain.as<float>(),
                                      .k_gain = block.k_gain.as<float>(),
                                      .qk_epsilon = config_.rms_norm_eps,
                                      .sequences = sequences,
                                      .layer = layer});
  kernels::ops::Attention(
      backend_, {.q = kernels::Columns(qkv, 0, int64_t{config_.heads} * config_.head_dim),
                 .heads = config_.heads,
                 .kv = kv,
                 .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                 .sliding_window = config_.sliding_window[static_cast<size_t>(block.layer)],
                 .sequences = sequences,
                 .layer = layer,
                 .out = block[Stage::kO].input.First(tokens)});
}

// hidden_ -> input of down.
void BlockRunner::RunSilu(const DeviceBlock& block, int64_t tokens) {
  const kernels::FloatMatrix gate_up = gate_up_.First(tokens);
  Norm(block.post_attention_gain, block[Stage::kGateUp], tokens);
  kernels::ops::Linear(backend_, {.weight = block[Stage::kGateUp].weight.get(),
                                  .x = block[Stage::kGateUp].input.First(tokens),
                                  .out = gate_up});
  kernels::ops::SiluMul(backend_,
                        {.gate_up = gate_up, .out = block[Stage::kDown].input.First(tokens)});
}

absl::StatusOr<MatrixF> BlockRunner::Input(const DeviceBlock& block, Stage stage,
                                           const MatrixF& hidden) {
  const int64_t tokens = hidden.rows();
  PutHidden(hidden);
  RETURN_IF_ERROR(ToAbsl(backend_.Run(0, [&] {
    if (stage == Stage::kQkv) Norm(block.input_gain, block[stage], tokens);
    if (stage == Stage::kO) RunAttention(block, tokens);
    if (stage == Stage::kGateUp) Norm(block.post_attention_gain, block[stage], tokens);
    if (stage == Stage::kDown) RunSilu(block, tokens);
  })));
  return TakeInput(block[stage], tokens);
}

absl::Status BlockRunner::AddAttention(const DeviceBlock& block, MatrixF& hidden, MatrixF* input) {
  const int64_t tokens = hidden.rows();
  PutHidden(hidden);
  MatrixF delta(tokens, config_.hidden_size);
  RETURN_IF_ERROR(ToAbsl(backend_.Run(0, [&] {
    RunAttention(block, tokens);
    kernels::ops::Linear(backend_, {.weight = block[Stage::kO].weight.get(),
                                    .x = block[Stage::kO].input.First(tokens),
                                    .out = delta_.First(tokens)});
  })));
  backend_.CopyToHost(delta.data(), delta_.First(tokens).data,
                      delta.size() * int64_t{sizeof(float)});
  hidden += delta;
  if (input != nullptr) *input = TakeInput(block[Stage::kO], tokens);
  return absl::OkStatus();
}

absl::Status BlockRunner::AddFeedForward(const DeviceBlock& block, MatrixF& hidden,
                                         MatrixF* input) {
  const int64_t tokens = hidden.rows();
  PutHidden(hidden);
  MatrixF delta(tokens, config_.hidden_size);
  RETURN_IF_ERROR(ToAbsl(backend_.Run(0, [&] {
    RunSilu(block, tokens);
    kernels::ops::Linear(backend_, {.weight = block[Stage::kDown].weight.get(),
                                    .x = block[Stage::kDown].input.First(tokens),
                                    .out = delta_.First(tokens)});
  })));
  backend_.CopyToHost(delta.data(), delta_.First(tokens).data,
                      delta.size() * int64_t{sizeof(float)});
  hidden += delta;
  if (input != nullptr) *input = TakeInput(block[Stage::kDown], tokens);
  return absl::OkStatus();
}

namespace {

void NormHead(float* head, const VectorF& gain, float epsilon) {
  Eigen::Map<VectorF> values(head, gain.size());
  const double mean = values.cast<double>().squaredNorm() / static_cast<double>(gain.size());
  values *= static_cast<float>(1 / std::sqrt(mean + epsilon));
  values.array() *= gain.array();
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

absl::StatusOr<BlockRunner::Rotated> BlockRunner::RotatedQueriesAndKeys(const BlockWeights& block,
                                                                        const MatrixF& input) {
  Rotated rotated;
  const auto project = [&](const FloatLinear& linear,
                           const VectorF& gain) -> absl::StatusOr<MatrixF> {
    ASSIGN_OR_RETURN(MatrixF values, MultiplyTransposed(backend_, input, linear.weight));
    if (linear.has_bias()) values.rowwise() += linear.bias.transpose();
    for (int64_t token = 0; token < values.rows(); ++token) {
      const float* cos_sin = host_cos_sin_.data() + token * block.head_dim;
      for (int64_t at = 0; at < values.cols(); at += block.head_dim) {
        float* const head = values.row(token).data() + at;
        if (gain.size() != 0) NormHead(head, gain, config_.rms_norm_eps);
        RotateHead(head, block.head_dim, cos_sin);
      }
    }
    return values;
  };
  ASSIGN_OR_RETURN(rotated.q, project(block[kQ], block.q_gain));
  ASSIGN_OR_RETURN(rotated.k, project(block[kK], block.k_gain));
  return rotated;
}

}  // namespace qserve::quantizer::calibration
