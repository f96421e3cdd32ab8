// See attention_scales.h.
#include "quantizer/transform/attention_scales.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace qserve::quantizer::transform {
namespace {

constexpr int kSweeps = 12;
constexpr float kFirstStep = 1.25f;

// The range of every token's key, kept as one channel after the other is left out.
class Ranges {
 public:
  explicit Ranges(const MatrixF& keys) : keys_(keys.transpose()) {}

  // Mean squared range with the inverse scales given.
  double Mean(const VectorF& inverse) {
    high_.setConstant(keys_.cols(), -std::numeric_limits<float>::infinity());
    low_.setConstant(keys_.cols(), std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < keys_.rows(); ++i) {
      const auto channel = keys_.row(i).transpose() * inverse[i];
      high_ = high_.cwiseMax(channel);
      low_ = low_.cwiseMin(channel);
    }
    return (high_ - low_).cast<double>().squaredNorm() / static_cast<double>(keys_.cols());
  }

 private:
  const MatrixF keys_;  // [head_dim][tokens]
  VectorF high_, low_;
};

}  // namespace

void FitAttentionScales(const MatrixF& keys, const VectorF& query_moments,
                        Eigen::Ref<VectorF> lambda) {
  const int64_t half = lambda.size() / 2;
  Ranges ranges(keys);
  VectorF scales = lambda;
  const auto cost = [&] {
    const double queries =
        scales.cwiseProduct(scales).cast<double>().dot(query_moments.cast<double>());
    return ranges.Mean(scales.cwiseInverse()) * queries;
  };
  double least = cost();
  float step = kFirstStep;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool better = false;
    for (int64_t i = 0; i < half; ++i) {
      for (const float factor : {step, 1 / step}) {
        const float before = scales[i];
        scales[i] = scales[i + half] = before * factor;
        const double now = cost();
        if (now < least) {
          least = now;
          better = true;
          break;
        }
        scales[i] = scales[i + half] = before;
      }
    }
    if (!better) step = 1 + (step - 1) / 2;
  }
  lambda = scales;
}

}  // namespace qserve::quantizer::transform
