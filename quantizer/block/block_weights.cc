// See block_weights.h.
#include "quantizer/block/block_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "common/status_macros.h"
#include "quantizer/block/parallel.h"
#include "worker/checkpoint/model_layout.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

constexpr int64_t kPieceRows = 256;  // read at once by a thread

absl::StatusOr<VectorF> ReadGain(const ckpt::Checkpoint& checkpoint, const std::string& name,
                                 int64_t size) {
  ASSIGN_OR_RETURN(const std::vector<float> values, checkpoint.ReadVector(name, size));
  const VectorF gain = Eigen::Map<const VectorF>(values.data(), size);
  if (!gain.allFinite()) {
    return absl::InvalidArgumentError(fmt::format("tensor {}: a gain is not finite", name));
  }
  return gain;
}

absl::Status ReadPiece(const ckpt::Checkpoint& checkpoint, const ckpt::LinearSpec& spec,
                       ckpt::Range rows, FloatLinear& to) {
  ASSIGN_OR_RETURN(
      const kernels::LinearWeight piece,
      checkpoint.ReadLinear(spec.name, rows, {0, spec.k}, ckpt::LoadQuantization::kNone));
  for (int64_t row = 0; row < rows.size(); ++row) {
    float* const values = to.weight.row(rows.begin + row).data();
    kernels::DequantizeRow(piece, row, values);
    for (int64_t k = 0; k < spec.k; ++k) {
      if (!std::isfinite(values[k])) {
        return absl::InvalidArgumentError(
            fmt::format("{}: weight ({}, {}) is not finite", spec.name, rows.begin + row, k));
      }
    }
  }
  for (size_t i = 0; i < piece.bias.size(); ++i) {
    if (!std::isfinite(piece.bias[i])) {
      return absl::InvalidArgumentError(fmt::format("{}: a bias is not finite", spec.name));
    }
    to.bias[rows.begin + static_cast<int64_t>(i)] = piece.bias[i];
  }
  return absl::OkStatus();
}

absl::StatusOr<FloatLinear> ReadLinear(const ckpt::Checkpoint& checkpoint,
                                       const ckpt::LinearSpec& spec, int threads) {
  FloatLinear linear;
  linear.name = spec.name;
  linear.weight.resize(spec.n, spec.k);
  if (spec.bias) linear.bias = VectorF::Zero(spec.n);
  std::mutex mutex;
  absl::Status first;
  ParallelFor(threads, (spec.n + kPieceRows - 1) / kPieceRows, [&](int64_t piece) {
    const int64_t begin = piece * kPieceRows;
    absl::Status status =
        ReadPiece(checkpoint, spec, {begin, std::min(begin + kPieceRows, spec.n)}, linear);
    const std::lock_guard lock(mutex);
    if (first.ok()) first = std::move(status);
  });
  RETURN_IF_ERROR(first);
  return linear;
}

}  // namespace

absl::StatusOr<BlockWeights> ReadBlock(const ckpt::Checkpoint& checkpoint, int64_t layer,
                                       int threads) {
  const ckpt::ModelConfig& config = checkpoint.config();
  BlockWeights block;
  block.layer = layer;
  block.heads = config.heads;
  block.kv_heads = config.kv_heads;
  block.head_dim = config.head_dim;
  const std::vector<ckpt::LinearSpec> specs = ckpt::LayerLinears(config, layer);
  for (size_t i = 0; i < kLinearCount; ++i) {
    ASSIGN_OR_RETURN(block.linears[i], ReadLinear(checkpoint, specs[i], threads));
  }
  const std::string name = fmt::format("model.layers.{}.", layer);
  ASSIGN_OR_RETURN(block.input_gain,
                   ReadGain(checkpoint, name + "input_layernorm.weight", config.hidden_size));
  ASSIGN_OR_RETURN(
      block.post_attention_gain,
      ReadGain(checkpoint, name + "post_attention_layernorm.weight", config.hidden_size));
  if (config.qk_norm) {
    ASSIGN_OR_RETURN(block.q_gain,
                     ReadGain(checkpoint, name + "self_attn.q_norm.weight", config.head_dim));
    ASSIGN_OR_RETURN(block.k_gain,
                     ReadGain(checkpoint, name + "self_attn.k_norm.weight", config.head_dim));
  }
  return block;
}

absl::StatusOr<MatrixF> ReadMatrixRows(const ckpt::Checkpoint& checkpoint, const std::string& name,
                                       ckpt::Range rows, int64_t cols) {
  ASSIGN_OR_RETURN(ckpt::FloatMatrix stored, checkpoint.ReadRows(name, rows, cols));
  kernels::LinearWeight weight;
  weight.float_type = stored.type;
  weight.n = rows.size();
  weight.k = cols;
  weight.floats = std::move(stored.data);
  MatrixF matrix(rows.size(), cols);
  for (int64_t row = 0; row < rows.size(); ++row) {
    kernels::DequantizeRow(weight, row, matrix.row(row).data());
  }
  return matrix;
}

kernels::LinearWeight ToKernelWeight(const FloatLinear& linear) {
  kernels::LinearWeight weight;
  weight.format = kernels::WeightFormat::kFloat;
  weight.float_type = kernels::FloatType::kF32;
  weight.n = linear.weight.rows();
  weight.k = linear.weight.cols();
  weight.floats.resize(static_cast<size_t>(linear.weight.size()) * sizeof(float));
  std::memcpy(weight.floats.data(), linear.weight.data(), weight.floats.size());
  weight.bias.assign(linear.bias.data(), linear.bias.data() + linear.bias.size());
  return weight;
}

}  // namespace qserve::quantizer
