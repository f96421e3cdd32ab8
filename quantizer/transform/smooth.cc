// See smooth.h.
#include "quantizer/transform/smooth.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace qserve::quantizer::transform {
namespace {

constexpr float kLargestScale = 1e4f;

// Divides by the geometric mean, so that no magnitudes run away, and bounds what is left.
void Balance(Eigen::Ref<VectorF> scales) {
  double sum = 0;
  for (const float s : scales) sum += std::log(double{s});
  const auto mean = static_cast<float>(std::exp(sum / static_cast<double>(scales.size())));
  for (float& s : scales) s = std::clamp(s / mean, 1 / kLargestScale, kLargestScale);
}

float Scale(float over, float under, double alpha, double beta) {
  if (!(over > 0) || !(under > 0)) return 1;
  return static_cast<float>(std::pow(double{over}, alpha) / std::pow(double{under}, beta));
}

void DivideRows(FloatLinear& linear, int64_t row, float by) {
  linear.weight.row(row) /= by;
  if (linear.has_bias()) linear.bias[row] /= by;
}

std::vector<int64_t> Ascending(const VectorF& keys, int64_t begin, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  return order;
}

void PermuteRows(const std::vector<int64_t>& order, FloatLinear& linear) {
  const MatrixF weight = linear.weight;
  const VectorF bias = linear.bias;
  for (size_t i = 0; i < order.size(); ++i) {
    const auto to = static_cast<int64_t>(i);
    linear.weight.row(to) = weight.row(order[i]);
    if (linear.has_bias()) linear.bias[to] = bias[order[i]];
  }
}

void PermuteColumns(const std::vector<int64_t>& order, FloatLinear& linear) {
  const MatrixF weight = linear.weight;
  for (size_t i = 0; i < order.size(); ++i) {
    linear.weight.col(static_cast<int64_t>(i)) = weight.col(order[i]);
  }
}

}  // namespace

VectorF OverGroup(const BlockWeights& block, const VectorF& per_query_head) {
  const int64_t dim = block.head_dim;
  VectorF largest = VectorF::Zero(block.kv_heads * dim);
  for (int q = 0; q < block.heads; ++q) {
    auto head = largest.segment(q / block.group() * dim, dim);
    head = head.cwiseMax(per_query_head.segment(q * dim, dim)).eval();
  }
  return largest;
}

VectorF AttentionScales(const BlockWeights& block, const VectorF& largest_q,
                        const VectorF& largest_k, double alpha, double beta) {
  const int64_t dim = block.head_dim, half = dim / 2;
  VectorF q = OverGroup(block, largest_q), k = largest_k;
  if (block.k_gain.size() != 0) {
    for (int h = 1; h < block.kv_heads; ++h) {
      q.head(dim) = q.head(dim).cwiseMax(q.segment(h * dim, dim)).eval();
      k.head(dim) = k.head(dim).cwiseMax(k.segment(h * dim, dim)).eval();
    }
    for (int h = 1; h < block.kv_heads; ++h) {
      q.segment(h * dim, dim) = q.head(dim).eval();
      k.segment(h * dim, dim) = k.head(dim).eval();
    }
  }
  VectorF lambda(block.kv_heads * dim);
  for (int h = 0; h < block.kv_heads; ++h) {
    for (int64_t i = h * dim; i < h * dim + half; ++i) {
      lambda[i] = lambda[i + half] =
          Scale(std::max(k[i], k[i + half]), std::max(q[i], q[i + half]), alpha, beta);
    }
    Balance(lambda.segment(h * dim, dim));
  }
  return lambda;
}

void ScaleAttention(const VectorF& lambda, BlockWeights& block) {
  const int64_t dim = block.head_dim;
  if (block.k_gain.size() != 0) {
    block.k_gain.array() /= lambda.head(dim).array();
    block.q_gain.array() *= lambda.head(dim).array();
    return;
  }
  for (int64_t i = 0; i < lambda.size(); ++i) DivideRows(block[kK], i, lambda[i]);
  for (int q = 0; q < block.heads; ++q) {
    const int64_t from = q / block.group() * dim;
    for (int64_t i = 0; i < dim; ++i) DivideRows(block[kQ], q * dim + i, 1 / lambda[from + i]);
  }
}

VectorF OutputScales(const MatrixF& weight, const VectorF& largest_x, double alpha, double beta) {
  VectorF scales(largest_x.size());
  for (int64_t k = 0; k < scales.size(); ++k) {
    scales[k] = Scale(largest_x[k], weight.col(k).cwiseAbs().maxCoeff(), alpha, beta);
  }
  Balance(scales);
  return scales;
}

void ScaleFeedForward(const VectorF& s, BlockWeights& block) {
  QSERVE_CHECK(s.size() == block[kDown].weight.cols());
  block[kDown].weight *= s.asDiagonal();
  for (int64_t i = 0; i < s.size(); ++i) DivideRows(block[kUp], i, s[i]);
}

void ScaleValues(const VectorF& s, BlockWeights& block) {
  const int64_t dim = block.head_dim;
  for (int64_t i = 0; i < s.size(); ++i) DivideRows(block[kV], i, s[i]);
  for (int q = 0; q < block.heads; ++q) {
    block[kO].weight.middleCols(q * dim, dim) *=
        s.segment(q / block.group() * dim, dim).asDiagonal();
  }
}

void ReorderFeedForward(const VectorF& largest, BlockWeights& block) {
  const std::vector<int64_t> order = Ascending(largest, 0, largest.size());
  PermuteRows(order, block[kGate]);
  PermuteRows(order, block[kUp]);
  PermuteColumns(order, block[kDown]);
}

void ReorderValues(const VectorF& largest, BlockWeights& block) {
  const int64_t dim = block.head_dim;
  std::vector<int64_t> rows, columns;
  for (int h = 0; h < block.kv_heads; ++h) {
    const std::vector<int64_t> order = Ascending(largest, h * dim, dim);
    rows.insert(rows.end(), order.begin(), order.end());
    for (int q = h * block.group(); q < (h + 1) * block.group(); ++q) {
      for (const int64_t at : order) columns.push_back(q * dim + at - h * dim);
    }
  }
  PermuteRows(rows, block[kV]);
  PermuteColumns(columns, block[kO]);
}

}  // namespace qserve::quantizer::transform
