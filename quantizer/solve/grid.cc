// See grid.h.
#include "quantizer/solve/grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/quant/half.h"
#include "kernels/quant/rtn.h"
#include "quantizer/block/parallel.h"

namespace qserve::quantizer::solve {
namespace {

using kernels::kWeightGroup;
using worker::checkpoint::Scheme;

constexpr float kLargestCode = 15;

// Importance-weighted squared error of `count` values on these levels: the innermost loop of all
// searches, in arrays because compilers make branches of Levels::Nearest.
float ErrorOf(const float* values, const float* importance, int64_t count, const Levels& levels) {
  using Lanes = Eigen::Array<float, 8, 1>;
  using Chunk = Eigen::Map<const Lanes>;
  Lanes sum = Lanes::Zero();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const Chunk value(values + i);
    const Lanes at = ((value - levels.base) * levels.inverse).max(0.0f).min(levels.highest);
    const Lanes code = (at + kRoundingMagic) - kRoundingMagic;
    const Lanes error = value - (code * levels.step + levels.base);
    sum += Chunk(importance + i) * error * error;
  }
  for (; i < count; ++i) {
    const float error = values[i] - levels.Nearest(values[i]);
    sum[0] += importance[i] * error * error;
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

Levels MakeLevels(float step, float base) {
  return {.step = step, .base = base, .inverse = 1.0f / step};
}

// Scale and offset of one group at level 2, in units of the row's scale.
struct GroupChoice {
  int scale = 1;
  int offset = 0;
  float error = std::numeric_limits<float>::infinity();
};

// The best integer scale and offset for values already divided by the row's scale.
GroupChoice ChooseGroup(const float* w8, const float* importance, int64_t count,
                        const SolveOptions& options) {
  const bool free_zero = options.free_zero;
  const auto [low_at, high_at] = std::minmax_element(w8, w8 + count);
  const float low = free_zero ? *low_at : std::min(*low_at, 0.0f);
  const float high = free_zero ? *high_at : std::max(*high_at, 0.0f);
  const float range = high - low;
  GroupChoice best;
  int largest = std::clamp(static_cast<int>(std::ceil(range / kLargestCode)), 1, 17);
  int smallest = std::clamp(static_cast<int>(std::floor(static_cast<float>(options.smallest_ratio) *
                                                        range / kLargestCode)),
                            1, largest);
  if (options.fixed_ratio > 0) {
    const float kept = static_cast<float>(options.fixed_ratio) * range / kLargestCode;
    smallest = largest = std::clamp(static_cast<int>(std::nearbyint(kept)), 1, largest);
  }
  for (int scale = smallest; scale <= largest; ++scale) {
    const auto try_offset = [&](int offset) {
      if (offset < -128 || offset + 15 * scale > 127) return;
      const float error = ErrorOf(
          w8, importance, count, MakeLevels(static_cast<float>(scale), static_cast<float>(offset)));
      if (error < best.error) best = {scale, offset, error};
    };
    const float step = static_cast<float>(scale);
    if (!free_zero) {
      const int zero = std::clamp(static_cast<int>(std::nearbyint(-low / step)), 0, 15);
      for (int z = std::max(zero - 2, 0); z <= std::min(zero + 2, 15); ++z) try_offset(-z * scale);
      continue;
    }
    // From "the highest code is the highest weight" to "the lowest code is the lowest weight".
    const float at_low = low, at_high = high - kLargestCode * step;
    const float from = std::min(at_low, at_high) - 0.25f * step;
    const float to = std::max(at_low, at_high) + 0.25f * step;
    constexpr int kPlaces = 5;
    int last = std::numeric_limits<int>::min();
    for (int i = 0; i < kPlaces; ++i) {
      const float place = from + (to - from) * static_cast<float>(i) / (kPlaces - 1);
      const int offset =
          std::clamp(static_cast<int>(std::nearbyint(place)), -128, 127 - 15 * scale);
      if (offset != last) try_offset(offset);
      last = offset;
    }
  }
  return best;
}

// Every group of one row for one scale of the row; the sum of errors in weight units.
float ChooseRow(const float* weights, const float* importance, int64_t k, float scale,
                const SolveOptions& options, std::vector<GroupChoice>& groups,
                std::vector<float>& w8) {
  float error = 0;
  const float inverse = 1.0f / scale;
  for (int64_t c = 0; c < k; ++c) w8[static_cast<size_t>(c)] = weights[c] * inverse;
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto begin = static_cast<int64_t>(g) * kWeightGroup;
    groups[g] = ChooseGroup(w8.data() + begin, importance + begin,
                            std::min<int64_t>(kWeightGroup, k - begin), options);
    error += groups[g].error * scale * scale;
  }
  return error;
}

void SearchGroupRow(const MatrixF& weights, const VectorF& importance, int64_t row,
                    const SolveOptions& options, kernels::LinearWeight& out) {
  const int64_t k = weights.cols();
  const float largest = weights.row(row).cwiseAbs().maxCoeff();
  std::vector<GroupChoice> groups(static_cast<size_t>(out.groups())), best(groups);
  std::vector<float> w8(static_cast<size_t>(k));
  float best_error = std::numeric_limits<float>::infinity();
  for (int i = 0; i < options.ratios; ++i) {
    const double ratio = 1 - (1 - options.smallest_ratio) * i / std::max(1, options.ratios - 1);
    const float scale = kernels::RoundToHalf(static_cast<float>(ratio) * largest / 119.0f);
    if (!(scale > 0x1p-20f)) break;
    const float error =
        ChooseRow(weights.row(row).data(), importance.data(), k, scale, options, groups, w8);
    if (error < best_error) {
      best_error = error;
      best = groups;
      out.scale[static_cast<size_t>(row)] = scale;
    }
  }
  if (!std::isfinite(best_error)) return;  // what round to nearest chose stays
  for (size_t g = 0; g < best.size(); ++g) {
    const size_t at = static_cast<size_t>(row * out.groups()) + g;
    out.group_scale[at] = static_cast<uint8_t>(best[g].scale);
    out.group_offset[at] = static_cast<int16_t>(best[g].offset);
  }
}

void SearchChannelRow(const MatrixF& weights, const VectorF& importance, int64_t row,
                      const SolveOptions& options, kernels::LinearWeight& out) {
  const int64_t k = weights.cols();
  const float* const values = weights.row(row).data();
  const float low = std::min(weights.row(row).minCoeff(), 0.0f);
  const float high = std::max(weights.row(row).maxCoeff(), 0.0f);
  float best_error = std::numeric_limits<float>::infinity();
  const auto attempt = [&](float low_ratio, float high_ratio) {
    const float scale = kernels::RoundToHalf((high_ratio * high - low_ratio * low) / kLargestCode);
    if (!(scale > 0x1p-20f)) return;
    float zero = -low_ratio * low / scale;
    if (!options.free_zero) zero = std::clamp(std::nearbyint(zero), 0.0f, kLargestCode);
    const float scaled_zero = kernels::RoundToHalf(zero * scale);
    if (!std::isfinite(scaled_zero)) return;
    const float error = ErrorOf(values, importance.data(), k, MakeLevels(scale, -scaled_zero));
    if (error >= best_error) return;
    best_error = error;
    out.scale[static_cast<size_t>(row)] = scale;
    out.scaled_zero[static_cast<size_t>(row)] = scaled_zero;
  };
  float best_ratio = 1;
  const double step = (1 - options.smallest_ratio) / std::max(1, options.ratios - 1);
  if (options.fixed_ratio > 0) {  // of this width, wherever it errs least
    const auto ratio = static_cast<float>(options.fixed_ratio);
    for (int a = -3; a <= 3; ++a) {
      const float shift = static_cast<float>(step) * static_cast<float>(a);
      attempt(ratio + shift, ratio - shift);
    }
    return;
  }
  for (int i = 0; i < options.ratios; ++i) {
    const auto ratio = static_cast<float>(1 - step * i);
    const float before = best_error;
    attempt(ratio, ratio);
    if (best_error < before) best_ratio = ratio;
  }
  // Both ends by themselves around it.
  for (int a = -3; a <= 3; ++a) {
    for (int b = -3; b <= 3; ++b) {
      const auto shift = static_cast<float>(step);
      attempt(best_ratio + shift * static_cast<float>(a),
              best_ratio + shift * static_cast<float>(b));
    }
  }
}

}  // namespace

int64_t GroupColumns(const kernels::LinearWeight& weight) {
  return weight.format == kernels::WeightFormat::kW4Group128 ? kWeightGroup : weight.k;
}

Levels LevelsOf(const kernels::LinearWeight& weight, int64_t row, int64_t group) {
  const float scale = weight.scale[static_cast<size_t>(row)];
  if (weight.format == kernels::WeightFormat::kW4PerChannel) {
    return MakeLevels(scale, -weight.scaled_zero[static_cast<size_t>(row)]);
  }
  const auto at = static_cast<size_t>(row * weight.groups() + group);
  const int step = weight.group_scale[at], offset = weight.group_offset[at];
  Levels levels = MakeLevels(scale * static_cast<float>(step), scale * static_cast<float>(offset));
  levels.highest = static_cast<float>(std::min(15, (127 - offset) / step));
  return levels;
}

kernels::StatusOr<kernels::LinearWeight> ChooseGrid(const MatrixF& weights,
                                                    const VectorF& importance,
                                                    const SolveOptions& options) {
  const bool groups = options.scheme == Scheme::kQoqGroup128;
  kernels::StatusOr<kernels::LinearWeight> chosen =
      groups ? kernels::RtnGroup128(weights.data(), weights.rows(), weights.cols())
             : kernels::RtnPerChannel(weights.data(), weights.rows(), weights.cols());
  if (!chosen.ok() || !options.clip_search) return chosen;
  ParallelFor(options.threads, weights.rows(), [&](int64_t row) {
    if (groups) {
      SearchGroupRow(weights, importance, row, options, *chosen);
    } else {
      SearchChannelRow(weights, importance, row, options, *chosen);
    }
    const int64_t size = GroupColumns(*chosen);
    for (int64_t k = 0; k < weights.cols(); ++k) {
      chosen->codes[static_cast<size_t>(row * weights.cols() + k)] =
          static_cast<uint8_t>(LevelsOf(*chosen, row, k / size).CodeOf(weights(row, k)));
    }
  });
  return chosen;
}

}  // namespace qserve::quantizer::solve
