// See comparison.h.
#include "quantizer/evaluate/comparison.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <Eigen/Core>

#include "common/status_macros.h"
#include "kernels/quant/rtn.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using worker::model::LinearInput;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Columns = Eigen::Array<float, 1, Eigen::Dynamic>;

constexpr float kSmallest = 1e-5f;
constexpr int kGrid = 20;  // of AWQ's search, as in its own
constexpr int kClips = 10;
constexpr float kClipStep = 0.05f;

LinearInput InputOf(size_t linear) {
  return linear < 3    ? LinearInput::kQkv
         : linear == 3 ? LinearInput::kO
         : linear < 6  ? LinearInput::kGateUp
                       : LinearInput::kDown;
}

// The linears that read each input.
std::map<LinearPlace, std::vector<ckpt::LinearSpec>> Readers(const ckpt::ModelConfig& config) {
  std::map<LinearPlace, std::vector<ckpt::LinearSpec>> readers;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::vector<ckpt::LinearSpec> linears = ckpt::LayerLinears(config, layer);
    for (size_t i = 0; i < linears.size(); ++i) readers[{layer, InputOf(i)}].push_back(linears[i]);
  }
  return readers;
}

struct Dense {
  RowMajor weights;
  std::vector<float> bias;
};

absl::StatusOr<Dense> ReadDense(const ckpt::Checkpoint& source, const std::string& name,
                                ckpt::Range rows, ckpt::Range columns) {
  ASSIGN_OR_RETURN(const kernels::LinearWeight weight,
                   source.ReadLinear(name, rows, columns, ckpt::LoadQuantization::kNone));
  Dense dense = {.weights = RowMajor(weight.n, weight.k), .bias = weight.bias};
  for (int64_t row = 0; row < weight.n; ++row)
    kernels::DequantizeRow(weight, row, dense.weights.data() + row * weight.k);
  return dense;
}

absl::StatusOr<RowMajor> ReadWhole(const ckpt::Checkpoint& source, const ckpt::LinearSpec& linear) {
  ASSIGN_OR_RETURN(Dense dense, ReadDense(source, linear.name, {0, linear.n}, {0, linear.k}));
  return std::move(dense.weights);
}

kernels::LinearWeight AsFloats(const RowMajor& weights, std::vector<float> bias) {
  kernels::LinearWeight weight;
  weight.n = weights.rows();
  weight.k = weights.cols();
  weight.floats.resize(static_cast<size_t>(weights.size()) * sizeof(float));
  std::memcpy(weight.floats.data(), weights.data(), weight.floats.size());
  weight.bias = std::move(bias);
  return weight;
}

// uint4 with a scale and an integer zero in each group, of the range shrunk by `ratio`.
void RoundGroup(Eigen::Ref<Columns> group, float ratio) {
  const float low = std::min(group.minCoeff(), 0.0f) * ratio;
  const float high = std::max(group.maxCoeff(), 0.0f) * ratio;
  const float scale = std::max((high - low) / 15, kSmallest * kSmallest);
  const float zero = std::clamp(std::rint(-low / scale), 0.0f, 15.0f);
  group = (((group / scale).rint() + zero).max(0.0f).min(15.0f) - zero) * scale;
}

// Rounds weights scaled by `factor` and scales them back. `x`, the input's sample: ranges are
// clipped for it; null: they are not.
void RoundAwq(RowMajor& weights, const Columns& factor, const RowMajor* x) {
  for (Eigen::Index n = 0; n < weights.rows(); ++n) {
    for (Eigen::Index k = 0; k < weights.cols(); k += kernels::kWeightGroup) {
      const Eigen::Index count = std::min<Eigen::Index>(kernels::kWeightGroup, weights.cols() - k);
      const Columns factors = factor.segment(k, count);
      const Columns original = weights.row(n).segment(k, count).array();
      Columns best;
      float least = INFINITY;
      for (int clip = 0; clip < (x == nullptr ? 1 : kClips); ++clip) {
        Columns rounded = original * factors;
        RoundGroup(rounded, 1 - kClipStep * static_cast<float>(clip));
        rounded /= factors;
        float error = 0;
        if (x != nullptr)
          error =
              (x->middleCols(k, count) * (rounded - original).matrix().transpose()).squaredNorm();
        if (error >= least) continue;
        least = error;
        best = std::move(rounded);
      }
      weights.row(n).segment(k, count) = best.matrix();
    }
  }
}

// mean|x|^power, its extremes balanced about 1.
Columns AwqFactor(const std::vector<float>& mean, float power) {
  const Eigen::Map<const Columns> means(mean.data(), std::ssize(mean));
  Columns factor = means.max(kSmallest).pow(power).max(1e-4f);
  return factor / std::sqrt(factor.maxCoeff() * factor.minCoeff());
}

RowMajor SampleOf(const InputStatistics& input) {
  const auto columns = static_cast<Eigen::Index>(input.mean.size());
  return Eigen::Map<const RowMajor>(
      input.sample.data(), static_cast<Eigen::Index>(input.sample.size()) / columns, columns);
}

// The factor whose rounding changes what the linears compute on the sample least.
absl::StatusOr<Columns> SearchFactor(const ckpt::Checkpoint& source,
                                     const std::vector<ckpt::LinearSpec>& linears,
                                     const InputStatistics& input) {
  const RowMajor x = SampleOf(input);
  std::vector<RowMajor> originals;
  for (const ckpt::LinearSpec& linear : linears) {
    ASSIGN_OR_RETURN(RowMajor weights, ReadWhole(source, linear));
    originals.push_back(std::move(weights));
  }
  Columns best;
  double least = INFINITY;
  for (int i = 0; i < kGrid; ++i) {
    Columns factor = AwqFactor(input.mean, static_cast<float>(i) / kGrid);
    double error = 0;
    for (const RowMajor& original : originals) {
      RowMajor rounded = original;
      RoundAwq(rounded, factor, nullptr);
      error += (x * (rounded - original).transpose()).squaredNorm();
    }
    if (error >= least) continue;
    least = error;
    best = std::move(factor);
  }
  return best;
}

std::map<std::string, LinearPlace> PlacesOf(const ckpt::ModelConfig& config) {
  std::map<std::string, LinearPlace> places;
  for (const auto& [place, linears] : Readers(config)) {
    for (const ckpt::LinearSpec& linear : linears) places[linear.name] = place;
  }
  return places;
}

}  // namespace

absl::StatusOr<Smoothing> SmoothQuant(const ckpt::Checkpoint& source,
                                      const ModelStatistics& statistics, double alpha) {
  Smoothing smoothing;
  for (const auto& [place, linears] : Readers(source.config())) {
    if (place.input != LinearInput::kQkv && place.input != LinearInput::kGateUp) continue;
    const InputStatistics& input = statistics.at(place);
    Columns weights = Columns::Constant(std::ssize(input.largest), kSmallest);
    for (const ckpt::LinearSpec& linear : linears) {
      ASSIGN_OR_RETURN(const RowMajor dense, ReadWhole(source, linear));
      weights = weights.max(dense.cwiseAbs().colwise().maxCoeff().array());
    }
    std::vector<float>& divisor = smoothing.divisors[place];
    for (size_t k = 0; k < input.largest.size(); ++k) {
      const double x = std::max(input.largest[k], kSmallest);
      const double w = weights[static_cast<Eigen::Index>(k)];
      divisor.push_back(static_cast<float>(
          std::max(std::pow(x, alpha) / std::pow(w, 1 - alpha), double{kSmallest})));
    }
  }
  smoothing.linears = [&source, divisors = smoothing.divisors, places = PlacesOf(source.config())](
                          const std::string& name, ckpt::Range rows,
                          ckpt::Range columns) -> absl::StatusOr<kernels::LinearWeight> {
    ASSIGN_OR_RETURN(Dense dense, ReadDense(source, name, rows, columns));
    Columns factor = Columns::Ones(dense.weights.cols());
    if (const auto found = divisors.find(places.at(name)); found != divisors.end())
      factor = Eigen::Map<const Columns>(found->second.data(), factor.size());
    dense.weights.array().rowwise() *= factor;
    ASSIGN_OR_RETURN(const kernels::LinearWeight rounded,
                     worker::model::ToAbsl(kernels::RtnInt8PerRow(
                         dense.weights.data(), dense.weights.rows(), dense.weights.cols())));
    for (int64_t row = 0; row < rounded.n; ++row)
      kernels::DequantizeRow(rounded, row, dense.weights.data() + row * rounded.k);
    dense.weights.array().rowwise() /= factor;
    return AsFloats(dense.weights, std::move(dense.bias));
  };
  return smoothing;
}

absl::StatusOr<Smoothing> Awq(const ckpt::Checkpoint& source, const ModelStatistics& statistics) {
  std::map<LinearPlace, Columns> factors;
  for (const auto& [place, linears] : Readers(source.config())) {
    const InputStatistics& input = statistics.at(place);
    // Values of grouped heads are read by several columns of o_proj: nothing can be folded there.
    const bool foldable =
        place.input != LinearInput::kO || source.config().heads == source.config().kv_heads;
    factors[place] = Columns::Ones(std::ssize(input.mean));
    if (!foldable) continue;
    ASSIGN_OR_RETURN(factors[place], SearchFactor(source, linears, input));
  }
  Smoothing smoothing;
  smoothing.linears = [&source, &statistics, factors = std::move(factors),
                       places = PlacesOf(source.config())](
                          const std::string& name, ckpt::Range rows,
                          ckpt::Range columns) -> absl::StatusOr<kernels::LinearWeight> {
    ASSIGN_OR_RETURN(Dense dense, ReadDense(source, name, rows, columns));
    const LinearPlace place = places.at(name);
    const RowMajor x = SampleOf(statistics.at(place));
    const bool clip = !name.ends_with("q_proj") && !name.ends_with("k_proj");
    RoundAwq(dense.weights, factors.at(place), clip ? &x : nullptr);
    return AsFloats(dense.weights, std::move(dense.bias));
  };
  return smoothing;
}

}  // namespace qserve::quantizer
