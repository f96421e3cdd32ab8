// Residual add and RMS norm, SiLU * up: plain forms. Called through OpTable `reference`.
#include <vector>

#include "kernels/cpu/activation_reference.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/math.h"

namespace qserve::kernels::cpu::reference {

// out = (x * (1 / sqrt(sum(x^2) / n + epsilon))) * gain, the sum over 16 virtual lanes.
Status Norm(OpContext&, const NormArgs& args) {
  const int64_t cols = args.residual.cols;
  if (args.delta.data != nullptr) {
    for (int64_t r = 0; r < args.residual.rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) args.residual.row(r)[c] += args.delta.row(r)[c];
    }
  }
  std::vector<float> normed(static_cast<size_t>(cols));
  for (int64_t i = 0; i < args.out.rows; ++i) {
    const int64_t r = args.rows.empty() ? i : args.rows[static_cast<size_t>(i)];
    const float* x = args.residual.row(r);
    LaneSum squares;
    for (int64_t c = 0; c < cols; ++c) squares.AddProduct(c, x[c], x[c]);
    const float mean_square = squares.Total() / static_cast<float>(cols);
    const float inverse = 1.0f / std::sqrt(mean_square + args.epsilon);
    for (int64_t c = 0; c < cols; ++c) {
      normed[static_cast<size_t>(c)] = (x[c] * inverse) * args.gain[c];
    }
    WriteRow(args.out, i, normed.data());
  }
  return {};
}

// out = (gate / (1 + exp(-gate))) * up.
Status SiluMul(OpContext&, const SiluMulArgs& args) {
  std::vector<float> row(static_cast<size_t>(args.out.cols));
  for (int64_t r = 0; r < args.out.rows; ++r) {
    const float* gate = args.gate_up.row(r);
    const float* up = gate + args.out.cols;
    for (int64_t c = 0; c < args.out.cols; ++c) {
      row[static_cast<size_t>(c)] = (gate[c] / (1.0f + Exp(-gate[c]))) * up[c];
    }
    WriteRow(args.out, r, row.data());
  }
  return {};
}

}  // namespace qserve::kernels::cpu::reference
