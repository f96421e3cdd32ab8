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

class RowRefiner {
 public:
  RowRefiner(const MatrixF& moments, const SolveOptions& options, kernels::LinearWeight& rounded)
      : h_(moments), options_(options), out_(rounded), group_columns_(GroupColumns(rounded)) {}

  void Refine(const VectorF& weights, int64_t row) {
    weights_ = weights;
    row_ = row;
    value_.resize(weights.size());
    kernels::DequantizeRow(out_, row, value_.data());
    Restart();
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

  void Restart() { gradient_.noalias() = h_ * (weights_ - value_); }

  // The row's values from its codes, and the gradient with them.
  void Evaluate() {
    kernels::DequantizeRow(out_, row_, value_.data());
    Restart();
  }

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
      const VectorF h_code = h * code, h_one = h.rowwise().sum();
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
      gradient_.noalias() -= h_.middleCols(begin, count) * step;
    }
  }

  // Keeps the new scale (and zero) only if the rounded pair is better.
  void FitRow() {
    const float before = Error();
    const auto row = static_cast<size_t>(row_);
    const float scale = out_.scale[row];
    const float zero = grouped() ? 0.0f : out_.scaled_zero[row];
    const VectorF direction = (value_.array() + zero) / scale;  // of the scale alone
    const VectorF h_direction = h_ * direction;
    const VectorF target = h_ * weights_;
    double a = direction.dot(h_direction), ta = direction.dot(target);
    double next_scale = scale, next_zero = zero;
    if (grouped()) {
      next_scale = ta / a;
    } else if (options_.free_zero) {
      const double b = h_direction.sum(), c = h_.sum(), tb = target.sum();
      const double determinant = a * c - b * b;
      if (!(determinant > 1e-9 * a * c)) return;
      next_scale = (ta * c - tb * b) / determinant;
      next_zero = -(tb * a - ta * b) / determinant;
    } else {
      const float ratio = zero / scale;
      const VectorF centred = direction.array() - ratio;
      next_scale = centred.dot(target) / centred.dot(h_ * centred);
      next_zero = ratio * next_scale;
    }
    const float new_scale = kernels::RoundToHalf(static_cast<float>(next_scale));
    const float new_zero = kernels::RoundToHalf(static_cast<float>(next_zero));
    if (!(new_scale > 0x1p-20f) || !std::isfinite(new_scale) || !std::isfinite(new_zero)) return;
    out_.scale[row] = new_scale;
    if (!grouped()) out_.scaled_zero[row] = new_zero;
    Evaluate();
    if (Error() <= before) return;
    out_.scale[row] = scale;
    if (!grouped()) out_.scaled_zero[row] = zero;
    Evaluate();
  }

  const MatrixF& h_;
  const SolveOptions& options_;
  kernels::LinearWeight& out_;
  const int64_t group_columns_;
  int64_t row_ = 0;
  VectorF weights_, value_, gradient_;
};

}  // namespace

void Refine(const MatrixF& weights, const MatrixD& moments, const SolveOptions& options,
            kernels::LinearWeight& rounded) {
  MatrixF damped = moments.cast<float>();
  damped.diagonal().array() +=
      static_cast<float>(options.damping * std::max(moments.diagonal().mean(), 1e-30));
  constexpr int64_t kPieceRows = 8;
  const int64_t n = weights.rows();
  ParallelFor(options.threads, (n + kPieceRows - 1) / kPieceRows, [&](int64_t piece) {
    RowRefiner refiner(damped, options, rounded);
    for (int64_t row = piece * kPieceRows; row < std::min((piece + 1) * kPieceRows, n); ++row) {
      refiner.Refine(weights.row(row).transpose(), row);
    }
  });
}

}  // namespace qserve::quantizer::solve
