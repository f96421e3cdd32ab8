// See output_smoother.h.
#include "quantizer/output_smoother.h"

#include <algorithm>

#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/calibration/gram.h"
#include "quantizer/solve/grid.h"
#include "quantizer/transform/smooth.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

using calibration::DeviceBlock;
using calibration::Stage;
using transform::SmoothOutputOptions;

// What the search looks at: outputs of a linear and tokens, at most, evenly spaced.
constexpr int64_t kSearchRows = 1024;
constexpr int64_t kSearchTokens = 1024;
// Of the error without smoothing: scales that save less are not worth what rounding better than to
// nearest may make of them.
constexpr double kWorthwhile = 0.95;

MatrixF EveryFew(const MatrixF& rows, int64_t at_most) {
  const int64_t count = std::min(rows.rows(), at_most);
  MatrixF some(count, rows.cols());
  for (int64_t i = 0; i < count; ++i) some.row(i) = rows.row(i * rows.rows() / count);
  return some;
}

// Inputs of a linear over the calibration windows.
struct Inputs {
  VectorF largest;  // magnitude of each channel
  MatrixF sample;   // some tokens, for the search

  void Take(const MatrixF& x, int64_t tokens) {
    calibration::TakeLargest(x, largest);
    const MatrixF some = EveryFew(x, tokens);
    sample.conservativeResize(sample.rows() + some.rows(), x.cols());
    sample.bottomRows(some.rows()) = some;
  }
};

class Smoother {
 public:
  Smoother(const transform::TransformOptions& options, const solve::SolveOptions& rounding,
           calibration::BlockRunner& runner, BlockWeights& block)
      : options_(options), rounding_(rounding), runner_(runner), block_(block) {}

  absl::Status Run(const std::vector<MatrixF>& hidden) {
    RETURN_IF_ERROR(Collect(hidden));
    if (options_.o_proj.enabled) RETURN_IF_ERROR(SmoothValues());
    if (options_.down_proj.enabled) RETURN_IF_ERROR(SmoothFeedForward());
    if (options_.reorder) {
      transform::ReorderValues(transform::OverGroup(block_, o_.largest), block_);
      transform::ReorderFeedForward(down_.largest, block_);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Collect(const std::vector<MatrixF>& hidden);
  absl::Status SmoothValues();
  absl::Status SmoothFeedForward();
  // The scales of these options: `scales_of(alpha, beta)` are those of the linear's columns.
  template <class ScalesOf>
  absl::StatusOr<VectorF> Choose(const SmoothOutputOptions& options, LinearIndex linear,
                                 const MatrixF& sample, const ScalesOf& scales_of) const;
  // Of every column of o_proj, from those of the values it reads.
  VectorF OfColumns(const VectorF& values) const;

  const transform::TransformOptions& options_;
  const solve::SolveOptions& rounding_;
  calibration::BlockRunner& runner_;
  BlockWeights& block_;
  Inputs o_, down_;
};

absl::Status Smoother::Collect(const std::vector<MatrixF>& hidden) {
  ASSIGN_OR_RETURN(const DeviceBlock device, runner_.Load(block_, runner_.exact_kv()));
  const int64_t each = std::max<int64_t>(1, kSearchTokens / std::ssize(hidden));
  for (const MatrixF& before : hidden) {
    MatrixF between = before, x;
    RETURN_IF_ERROR(runner_.AddAttention(device, between, &x));
    o_.Take(x, options_.o_proj.search ? each : 0);
    ASSIGN_OR_RETURN(x, runner_.Input(device, Stage::kDown, between));
    down_.Take(x, options_.down_proj.search ? each : 0);
  }
  return absl::OkStatus();
}

VectorF Smoother::OfColumns(const VectorF& values) const {
  const int64_t dim = block_.head_dim;
  VectorF columns(block_.heads * dim);
  for (int q = 0; q < block_.heads; ++q)
    columns.segment(q * dim, dim) = values.segment(q / block_.group() * dim, dim);
  return columns;
}

template <class ScalesOf>
absl::StatusOr<VectorF> Smoother::Choose(const SmoothOutputOptions& options, LinearIndex linear,
                                         const MatrixF& sample, const ScalesOf& scales_of) const {
  if (!options.search) return scales_of(options.alpha, options.beta);
  const MatrixF weight = EveryFew(block_[linear].weight, kSearchRows);
  VectorF best = VectorF::Ones(weight.cols());
  ASSIGN_OR_RETURN(const MatrixF exact,
                   calibration::MultiplyTransposed(runner_.backend(), sample, weight));
  ASSIGN_OR_RETURN(const double none,
                   SmoothedError(weight, sample, exact, best, rounding_, runner_.backend()));
  double least = kWorthwhile * none;
  double alpha_taken = 0, beta_taken = 0;
  const int steps = std::max(1, options.steps);
  for (int step = 1; step <= steps; ++step) {
    const double alpha = static_cast<double>(step) / steps;
    for (const double beta : {0.0, 1 - alpha}) {
      const VectorF scales = scales_of(alpha, beta);
      ASSIGN_OR_RETURN(const double error,
                       SmoothedError(weight, sample, exact, scales, rounding_, runner_.backend()));
      if (!(error < least)) continue;
      least = error;
      best = scales;
      alpha_taken = alpha;
      beta_taken = beta;
    }
  }
  if (alpha_taken == 0) {
    LOG_DEBUG("{}: not smoothed", block_[linear].name);
  } else {
    LOG_DEBUG("{}: smoothed with alpha {:.2f}, beta {:.2f}: error {:.3f} of what it was",
              block_[linear].name, alpha_taken, beta_taken, least / none);
  }
  return best;
}

absl::Status Smoother::SmoothValues() {
  // One scale for the query heads that share a value: the largest weight of theirs counts.
  const VectorF values = transform::OverGroup(block_, o_.largest);
  const VectorF weights = block_[kO].weight.cwiseAbs().colwise().maxCoeff().transpose();
  const MatrixF largest_weights = transform::OverGroup(block_, weights).transpose();
  ASSIGN_OR_RETURN(
      const VectorF scales, Choose(options_.o_proj, kO, o_.sample, [&](double alpha, double beta) {
        return OfColumns(transform::OutputScales(largest_weights, values, alpha, beta));
      }));
  VectorF of_values(values.size());
  for (int h = 0; h < block_.kv_heads; ++h) {
    of_values.segment(h * block_.head_dim, block_.head_dim) =
        scales.segment(h * block_.group() * block_.head_dim, block_.head_dim);
  }
  transform::ScaleValues(of_values, block_);
  o_.largest.array() /= scales.array();
  return absl::OkStatus();
}

absl::Status Smoother::SmoothFeedForward() {
  ASSIGN_OR_RETURN(const VectorF scales,
                   Choose(options_.down_proj, kDown, down_.sample, [&](double alpha, double beta) {
                     return transform::OutputScales(block_[kDown].weight, down_.largest, alpha,
                                                    beta);
                   }));
  transform::ScaleFeedForward(scales, block_);
  down_.largest.array() /= scales.array();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<double> SmoothedError(const MatrixF& weight, const MatrixF& inputs,
                                     const MatrixF& exact, const VectorF& scales,
                                     const solve::SolveOptions& rounding,
                                     kernels::Backend& backend) {
  const MatrixF scaled = weight * scales.asDiagonal();
  MatrixF x = inputs * scales.cwiseInverse().asDiagonal();
  calibration::SimulateInt8(x);
  const VectorF moments = x.colwise().squaredNorm().transpose();
  const VectorF importance = moments.array() + std::max(1e-6f * moments.mean(), 1e-30f);
  ASSIGN_OR_RETURN(const kernels::LinearWeight rounded,
                   worker::model::ToAbsl(solve::ChooseGrid(scaled, importance, rounding)));
  MatrixF values(weight.rows(), weight.cols());
  for (int64_t n = 0; n < values.rows(); ++n)
    kernels::DequantizeRow(rounded, n, values.row(n).data());
  ASSIGN_OR_RETURN(const MatrixF output, calibration::MultiplyTransposed(backend, x, values));
  return (output - exact).cast<double>().squaredNorm();
}

absl::Status SmoothOutputs(const transform::TransformOptions& options,
                           const solve::SolveOptions& rounding, calibration::BlockRunner& runner,
                           const std::vector<MatrixF>& hidden, BlockWeights& block) {
  return Smoother(options, rounding, runner, block).Run(hidden);
}

}  // namespace qserve::quantizer
