// See refine.h. For one row, with d = w - w' and error d^T H d: gradient g = H d is kept up to
// date; changing w' by v changes the error by v^T H v - 2 v^T g.
#include "quantizer/solve/refine.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/quant/half.h"
#include "quantizer/block/parallel.h"
#include "quantizer/solve/grid.h"

namespace qserve::quantizer::solve {
namespace {

using kernels::kWeightGroup;

// H of all rows, damped, and sums of its columns: over each row, and over the row's own group.
struct Curvature {
  MatrixF h;
  VectorF sums, group_sums;
};

Curvature CurvatureOf(const MatrixD& moments, double damping, int64_t group_columns) {
  Curvature c = {.h = moments.cast<float>()};
  c.h.diagonal().array() +=
      static_cast<float>(damping * std::max(moments.diagonal().mean(), 1e-30));
  c.sums = c.h.rowwise().sum();
  c.group_sums.resize(c.sums.size());
  for (int64_t begin = 0; begin < c.sums.size(); begin += group_columns) {
    const int64_t count = std::min(group_columns, c.sums.size() - begin);
    c.group_sums.segment(begin, count) = c.h.block(begin, begin, count, count).rowwise().sum();
  }
  return c;
}

class RowRefiner {
 public:
  RowRefiner(const Curvature& curvature, const SolveOptions& options,
             kernels::LinearWeight& rounded)
      : c_(curvature),
        h_(curvature.h),
        options_(options),
        out_(rounded),
        group_columns_(GroupColumns(rounded)) {}

  // `value`: the row as it is rounded; `target` = H weights; `gradient` = H (weights - value).
  void Refine(int64_t row, VectorF weights, VectorF value, VectorF target, VectorF gradient) {
    row_ = row;
    weights_ = std::move(weights);
    value_ = std::move(value);
    target_ = std::move(target);
    gradient_ = std::move(gradient);
    for (int sweep = 0; sweep < options_.sweeps; ++sweep) {
      const bool changed = SweepCodes();
      if (options_.free_zero && grouped()) MoveGroups();
      FitRow();
      if (!changed && sweep > 0) break;
    }
    SweepCodes();
  }

 private:
  bool grouped() const { return out_.format == kernels::WeightFormat::kW4Group128; }
  uint8_t* codes() { return out_.codes.data() + row_ * out_.k; }

  float Error() const { return gradient_.dot(weights_ - value_); }

  bool SweepCodes() {
    bool changed = false;
    for (int64_t begin = 0; begin < out_.k; begin += group_columns_) {
      const Levels levels = LevelsOf(out_, row_, begin / group_columns_);
      const int64_t end = std::min(begin + group_columns_, out_.k);
      for (int64_t k = begin; k < end; ++k) {
        const float code = levels.CodeOf(value_[k] + gradient_[k] / h_(k, k));
        const auto next = static_cast<uint8_t>(code);
        if (next == codes()[k]) continue;
        const float step = levels.ValueOf(code) - value_[k];
        gradient_.noalias() -= step * h_.row(k).transpose();
        value_[k] += step;
        codes()[k] = next;
        changed = true;
      }
    }
    return changed;
  }

  // Integer scale and offset of each group, codes as they are.
  void MoveGroups() {
    const float unit = out_.scale[static_cast<size_t>(row_)];
    for (int64_t g = 0; g < out_.groups(); ++g) {
      const int64_t begin = g * kWeightGroup;
      const int64_t count = std::min<int64_t>(kWeightGroup, out_.k - begin);
      VectorF code(count);
      for (int64_t i = 0; i < count; ++i) code[i] = static_cast<float>(codes()[begin + i]);
      const auto h = h_.block(begin, begin, count, count);
      const VectorF h_code = h * code;
      const auto h_one = c_.group_sums.segment(begin, count);
      const auto gradient = gradient_.segment(begin, count);
      const float along_scale = unit * code.dot(gradient), along_offset = unit * gradient.sum();
      const float ss = unit * unit * code.dot(h_code), so = unit * unit * code.dot(h_one),
                  oo = unit * unit * h_one.sum();
      const auto at = static_cast<size_t>(row_ * out_.groups() + g);
      const int scale = out_.group_scale[at], offset = out_.group_offset[at];
      int best_scale = 0, best_offset = 0;
      float best = 0;
      for (int s = -1; s <= 1; ++s) {
        const auto ds = static_cast<float>(s);
        const auto o = static_cast<int>(
            std::nearbyint(std::clamp((along_offset - ds * so) / oo, -64.0f, 64.0f)));
        const auto d = static_cast<float>(o);
        if (scale + s < 1 || offset + o < -128 || offset + o + 15 * (scale + s) > 127) continue;
        const float change =
            ds * ds * ss + 2 * ds * d * so + d * d * oo - 2 * (ds * along_scale + d * along_offset);
        if (change < best) {
          best = change;
          best_scale = s;
          best_offset = o;
        }
      }
      if (best_scale == 0 && best_offset == 0) continue;
      const VectorF step =
          unit * (static_cast<float>(best_scale) * code.array() + static_cast<float>(best_offset));
      out_.group_scale[at] = static_cast<uint8_t>(scale + best_scale);
      out_.group_offset[at] = static_cast<int16_t>(offset + best_offset);
      value_.segment(begin, count) += step;
      gradient_.noalias() -= h_.middleRows(begin, count).transpose() * step;
    }
  }

  // Keeps the new scale (and zero) only if the rounded pair is better.
  void FitRow() {
    const float before = Error();
    const auto row = static_cast<size_t>(row_);
    const float scale = out_.scale[row];
    const float zero = grouped() ? 0.0f : out_.scaled_zero[row];
    const VectorF direction = (value_.array() + zero) / scale;  // of the scale alone
    const VectorF h_direction = (target_ - gradient_ + zero * c_.sums) / scale;
    double a = direction.dot(h_direction), ta = direction.dot(target_);
    double next_scale = scale, next_zero = zero;
    if (grouped()) {
      next_scale = ta / a;
    } else if (options_.free_zero) {
      const double b = h_direction.sum(), c = c_.sums.sum(), tb = target_.sum();
      const double determinant = a * c - b * b;
      if (!(determinant > 1e-9 * a * c)) return;
      next_scale = (ta * c - tb * b) / determinant;
      next_zero = -(tb * a - ta * b) / determinant;
    } else {
      const float ratio = zero / scale;
      const VectorF centred = direction.array() - ratio;
      next_scale = centred.dot(target_) / centred.dot(h_direction - ratio * c_.sums);
      next_zero = ratio * next_scale;
    }
    const float new_scale = kernels::RoundToHalf(static_cast<float>(next_scale));
    const float new_zero = kernels::RoundToHalf(static_cast<float>(next_zero));
    if (!(new_scale > 0x1p-20f) || !std::isfinite(new_scale) || !std::isfinite(new_zero)) return;
    out_.scale[row] = new_scale;
    if (!grouped()) out_.scaled_zero[row] = new_zero;
    const VectorF value = value_, gradient = gradient_;
    kernels::DequantizeRow(out_, row_, value_.data());
    gradient_ = target_ - new_scale * h_direction;
    if (!grouped()) gradient_ += new_zero * c_.sums;
    if (Error() <= before) return;
    out_.scale[row] = scale;
    if (!grouped()) out_.scaled_zero[row] = zero;
    value_ = value;
    gradient_ = gradient;
  }

  const Curvature& c_;
  const MatrixF& h_;
  const SolveOptions& options_;
  kernels::LinearWeight& out_;
  const int64_t group_columns_;
  int64_t row_ = 0;
  VectorF weights_, value_, target_, gradient_;
};

}  // namespace

void Refine(const MatrixF& weights, const MatrixD& moments, const SolveOptions& options,
            kernels::LinearWeight& rounded) {
  const Curvature curvature = CurvatureOf(moments, options.damping, GroupColumns(rounded));
  constexpr int64_t kPieceRows = 32;  // read H together: it is larger than any cache
  const int64_t n = weights.rows(), k = weights.cols();
  ParallelFor(options.threads, (n + kPieceRows - 1) / kPieceRows, [&](int64_t piece) {
    const int64_t begin = piece * kPieceRows, count = std::min(kPieceRows, n - begin);
    MatrixF values(count, k);
    for (int64_t i = 0; i < count; ++i)
      kernels::DequantizeRow(rounded, begin + i, values.row(i).data());
    const MatrixF targets = weights.middleRows(begin, count) * curvature.h;
    const MatrixF gradients = (weights.middleRows(begin, count) - values) * curvature.h;
    RowRefiner refiner(curvature, options, rounded);
    for (int64_t i = 0; i < count; ++i)
      refiner.Refine(begin + i, weights.row(begin + i), values.row(i), targets.row(i),
                     gradients.row(i));
  });
}

}  // namespace qserve::quantizer::solve
