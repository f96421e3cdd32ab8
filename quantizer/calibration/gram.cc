// See gram.h.
#include "quantizer/calibration/gram.h"

#include <cstring>
#include <memory>
#include <vector>

#include "common/status_macros.h"
#include "kernels/ops.h"
#include "kernels/quant/activation_quant.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer::calibration {

using worker::model::ToAbsl;

absl::StatusOr<MatrixF> MultiplyTransposed(kernels::Backend& backend, const MatrixF& a,
                                           const MatrixF& b) {
  const int64_t m = a.rows(), n = b.rows(), k = a.cols();
  kernels::LinearWeight weight;
  weight.n = n;
  weight.k = k;
  weight.floats.resize(static_cast<size_t>(n * k) * sizeof(float));
  std::memcpy(weight.floats.data(), b.data(), weight.floats.size());
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::PackedLinear> packed,
                   ToAbsl(backend.Pack(weight)));
  const auto bytes = [](int64_t count) { return count * int64_t{sizeof(float)}; };
  ASSIGN_OR_RETURN(const kernels::Buffer x, ToAbsl(backend.Allocate(bytes(m * k), "product")));
  ASSIGN_OR_RETURN(const kernels::Buffer out, ToAbsl(backend.Allocate(bytes(m * n), "product")));
  backend.CopyToDevice(x.data(), a.data(), bytes(m * k));
  RETURN_IF_ERROR(ToAbsl(backend.Run(0, [&] {
    kernels::ops::Linear(backend,
                         {.weight = packed.get(),
                          .x = {.rows = m, .cols = k, .f32 = x.as<float>(), .f32_stride = k},
                          .out = kernels::FloatMatrix(out.as<float>(), m, n, n)});
  })));
  MatrixF product(m, n);
  backend.CopyToHost(product.data(), out.data(), bytes(m * n));
  return product;
}

absl::Status AddGram(kernels::Backend& backend, const MatrixF& a, const MatrixF& b, MatrixD& sum) {
  ASSIGN_OR_RETURN(const MatrixF product,
                   MultiplyTransposed(backend, a.transpose(), b.transpose()));
  if (sum.size() == 0) sum = MatrixD::Zero(product.rows(), product.cols());
  sum += product.cast<double>();
  return absl::OkStatus();
}

void TakeLargest(const MatrixF& x, VectorF& largest) {
  const VectorF here = x.cwiseAbs().colwise().maxCoeff().transpose();
  if (largest.size() == 0) {
    largest = here;
  } else {
    largest = largest.cwiseMax(here).eval();
  }
}

void SimulateInt8(MatrixF& x) {
  std::vector<int8_t> codes(static_cast<size_t>(x.cols()));
  for (int64_t row = 0; row < x.rows(); ++row) {
    float* const values = x.row(row).data();
    const kernels::QuantizedRow quantized = kernels::QuantizeRow(values, x.cols(), codes.data());
    for (int64_t c = 0; c < x.cols(); ++c)
      values[c] = static_cast<float>(codes[static_cast<size_t>(c)]) * quantized.scale;
  }
}

}  // namespace qserve::quantizer::calibration
