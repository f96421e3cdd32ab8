// See block_transformer.h.
#include "quantizer/block_transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/calibration/gram.h"
#include "quantizer/output_smoother.h"
#include "quantizer/transform/attention_scales.h"
#include "quantizer/transform/smooth.h"
#include "quantizer/transform/value_transform.h"

namespace qserve::quantizer {
namespace {

using calibration::BlockRunner;
using calibration::DeviceBlock;
using calibration::Stage;
using transform::TransformOptions;
using transform::ValueTransform;

class Transformer {
 public:
  Transformer(const TransformOptions& options, const solve::SolveOptions& rounding,
              kernels::KvFormat kv, BlockRunner* runner, const std::vector<MatrixF>& hidden,
              BlockWeights& block)
      : options_(options),
        rounding_(rounding),
        kv_(kv),
        runner_(runner),
        hidden_(hidden),
        block_(block) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Values());
    if (options_.attention.enabled) RETURN_IF_ERROR(Attention());
    if (options_.o_proj.enabled || options_.down_proj.enabled || options_.reorder) {
      RETURN_IF_ERROR(SmoothOutputs(options_, rounding_, *runner_, hidden_, block_));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Values();
  absl::Status Attention();
  absl::Status SearchAttention(const VectorF& largest_q, const VectorF& largest_k);
  absl::StatusOr<VectorF> FittedScales(VectorF lambda);
  // Squared error of each kv head at o_proj's output with these scales and stored keys and values;
  // `grams` are OutputGrams.
  absl::StatusOr<VectorD> AttentionErrors(const VectorF& lambda, DeviceBlock& device,
                                          const std::vector<MatrixF>& exact,
                                          const std::vector<MatrixD>& grams) const;
  std::vector<MatrixD> OutputGrams() const;

  const TransformOptions& options_;
  const solve::SolveOptions& rounding_;
  const kernels::KvFormat kv_;
  BlockRunner* const runner_;
  const std::vector<MatrixF>& hidden_;
  BlockWeights& block_;
};

absl::Status Transformer::Values() {
  if (options_.values == ValueTransform::kNone) return absl::OkStatus();
  if (options_.values == ValueTransform::kHadamard) {
    ASSIGN_OR_RETURN(const std::vector<MatrixD> matrices,
                     transform::HadamardValueTransform(block_));
    transform::ApplyValueTransform(matrices, block_);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const DeviceBlock device, runner_->Load(block_, runner_->exact_kv()));
  const int64_t dim = block_.head_dim;
  std::vector<MatrixD> moments(static_cast<size_t>(block_.kv_heads), MatrixD::Zero(dim, dim));
  for (const MatrixF& hidden : hidden_) {
    ASSIGN_OR_RETURN(const MatrixF x, runner_->Input(device, Stage::kQkv, hidden));
    ASSIGN_OR_RETURN(MatrixF values,
                     calibration::MultiplyTransposed(runner_->backend(), x, block_[kV].weight));
    if (block_[kV].has_bias()) values.rowwise() += block_[kV].bias.transpose();
    for (int h = 0; h < block_.kv_heads; ++h) {
      const MatrixF head = values.middleCols(h * dim, dim);
      moments[static_cast<size_t>(h)] += (head.transpose() * head).cast<double>();
    }
  }
  ASSIGN_OR_RETURN(const std::vector<MatrixD> matrices,
                   transform::BalancedValueTransform(block_, moments));
  transform::ApplyValueTransform(matrices, block_);
  return absl::OkStatus();
}

absl::Status Transformer::Attention() {
  VectorF largest_q, largest_k;
  {
    ASSIGN_OR_RETURN(const DeviceBlock device, runner_->Load(block_, runner_->exact_kv()));
    for (const MatrixF& hidden : hidden_) {
      ASSIGN_OR_RETURN(const MatrixF x, runner_->Input(device, Stage::kQkv, hidden));
      ASSIGN_OR_RETURN(const BlockRunner::Rotated rotated,
                       runner_->RotatedQueriesAndKeys(block_, x));
      calibration::TakeLargest(rotated.q, largest_q);
      calibration::TakeLargest(rotated.k, largest_k);
    }
  }
  if (options_.attention.search) return SearchAttention(largest_q, largest_k);
  transform::ScaleAttention(
      transform::AttentionScales(block_, largest_q, largest_k, options_.attention.alpha,
                                 options_.attention.beta),
      block_);
  return absl::OkStatus();
}

// W_o^T W_o of every query head.
std::vector<MatrixD> Transformer::OutputGrams() const {
  std::vector<MatrixD> grams;
  for (int q = 0; q < block_.heads; ++q) {
    const MatrixD columns =
        block_[kO].weight.middleCols(q * block_.head_dim, block_.head_dim).cast<double>();
    grams.push_back(columns.transpose() * columns);
  }
  return grams;
}

absl::StatusOr<VectorD> Transformer::AttentionErrors(const VectorF& lambda, DeviceBlock& device,
                                                     const std::vector<MatrixF>& exact,
                                                     const std::vector<MatrixD>& grams) const {
  BlockWeights scaled;
  scaled.heads = block_.heads;
  scaled.kv_heads = block_.kv_heads;
  scaled.head_dim = block_.head_dim;
  for (const LinearIndex i : {kQ, kK, kV}) scaled[i] = block_[i];
  scaled.q_gain = block_.q_gain;
  scaled.k_gain = block_.k_gain;
  transform::ScaleAttention(lambda, scaled);
  RETURN_IF_ERROR(runner_->Replace(Stage::kQkv, scaled, device));
  RETURN_IF_ERROR(runner_->ReplaceHeadGains(scaled, device));
  VectorD errors = VectorD::Zero(block_.kv_heads);
  for (size_t w = 0; w < exact.size(); ++w) {
    ASSIGN_OR_RETURN(MatrixF x, runner_->Input(device, Stage::kO, hidden_[w]));
    x -= exact[w];
    for (int q = 0; q < block_.heads; ++q) {
      const MatrixF head = x.middleCols(q * block_.head_dim, block_.head_dim);
      const MatrixD moments = (head.transpose() * head).cast<double>();
      errors[q / block_.group()] += moments.cwiseProduct(grams[static_cast<size_t>(q)]).sum();
    }
  }
  if (block_.k_gain.size() != 0) errors.setConstant(errors.sum());  // one choice for all heads
  return errors;
}

absl::Status Transformer::SearchAttention(const VectorF& largest_q, const VectorF& largest_k) {
  ASSIGN_OR_RETURN(DeviceBlock device, runner_->Load(block_, runner_->exact_kv()));
  const size_t windows = std::min(hidden_.size(), static_cast<size_t>(options_.attention.windows));
  std::vector<MatrixF> exact(windows);
  for (size_t w = 0; w < windows; ++w) {
    ASSIGN_OR_RETURN(exact[w], runner_->Input(device, Stage::kO, hidden_[w]));
  }
  device.kv_format = kv_;
  const std::vector<MatrixD> grams = OutputGrams();
  VectorD least = VectorD::Constant(block_.kv_heads, std::numeric_limits<double>::infinity());
  VectorF best(largest_k.size());
  const int64_t dim = block_.head_dim;
  const auto attempt = [&](const VectorF& lambda) -> absl::Status {
    ASSIGN_OR_RETURN(const VectorD errors, AttentionErrors(lambda, device, exact, grams));
    for (int h = 0; h < block_.kv_heads; ++h) {
      if (!(errors[h] < least[h])) continue;
      least[h] = errors[h];
      best.segment(h * dim, dim) = lambda.segment(h * dim, dim);
    }
    return absl::OkStatus();
  };
  const int steps = std::max(1, options_.attention.steps);
  for (int step = 0; step <= steps; ++step) {
    const double alpha = static_cast<double>(step) / steps;
    for (const double beta : {0.0, 1 - alpha}) {
      RETURN_IF_ERROR(
          attempt(transform::AttentionScales(block_, largest_q, largest_k, alpha, beta)));
    }
  }
  if (block_.k_gain.size() == 0) {
    ASSIGN_OR_RETURN(const VectorF fitted, FittedScales(best));
    RETURN_IF_ERROR(attempt(fitted));
  }
  transform::ScaleAttention(best, block_);
  return absl::OkStatus();
}

// `lambda` fitted to the keys of the search's windows, of which a sample is taken.
absl::StatusOr<VectorF> Transformer::FittedScales(VectorF lambda) {
  constexpr int64_t kTokens = 1024;
  const int64_t dim = block_.head_dim;
  const int64_t windows = std::min<int64_t>(std::ssize(hidden_), options_.attention.windows);
  ASSIGN_OR_RETURN(const DeviceBlock device, runner_->Load(block_, runner_->exact_kv()));
  const int64_t each = std::max<int64_t>(1, kTokens / windows);
  MatrixF keys(0, block_.kv_heads * dim);
  VectorF queries = VectorF::Zero(block_.heads * dim);
  for (int64_t w = 0; w < windows; ++w) {
    ASSIGN_OR_RETURN(const MatrixF x,
                     runner_->Input(device, Stage::kQkv, hidden_[static_cast<size_t>(w)]));
    ASSIGN_OR_RETURN(const BlockRunner::Rotated rotated, runner_->RotatedQueriesAndKeys(block_, x));
    queries += rotated.q.colwise().squaredNorm().transpose();
    const int64_t take = std::min<int64_t>(each, rotated.k.rows()), had = keys.rows();
    keys.conservativeResize(had + take, Eigen::NoChange);
    for (int64_t t = 0; t < take; ++t)
      keys.row(had + t) = rotated.k.row(t * rotated.k.rows() / take);
  }
  for (int h = 0; h < block_.kv_heads; ++h) {
    VectorF moments = VectorF::Zero(dim);
    for (int q = h * block_.group(); q < (h + 1) * block_.group(); ++q)
      moments += queries.segment(q * dim, dim);
    transform::FitAttentionScales(keys.middleCols(h * dim, dim), moments,
                                  lambda.segment(h * dim, dim));
  }
  return lambda;
}

}  // namespace

absl::Status TransformBlock(const TransformOptions& options, const solve::SolveOptions& rounding,
                            kernels::KvFormat kv, BlockRunner* runner,
                            const std::vector<MatrixF>& hidden, BlockWeights& block) {
  return Transformer(options, rounding, kv, runner, hidden, block).Run();
}

}  // namespace qserve::quantizer
