// QServe's packed layout as its own converter and DeepCompressor's write it: linear_source.h,
// OpenQserve.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "common/status_macros.h"
#include "kernels/quant/qserve_pack.h"
#include "quantizer/import/linear_source.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Dtype;

// Where row n's group parameters stand within its 32 columns.
int64_t QserveColumn(int64_t n) { return n % 8 * 4 + n % 32 / 8; }
int64_t DeepCompressorColumn(int64_t n) { return n % 32 / 16 * 16 + n % 8 * 2 + n % 16 / 8; }

std::vector<uint8_t> ReorderColumns(const std::vector<uint8_t>& values, int64_t rows) {
  std::vector<uint8_t> ordered(values.size());
  for (size_t begin = 0; begin < values.size(); begin += static_cast<size_t>(rows)) {
    for (int64_t n = 0; n < rows; ++n) {
      const auto block = begin + static_cast<size_t>(n / 32 * 32);
      ordered[block + static_cast<size_t>(QserveColumn(n))] =
          values[block + static_cast<size_t>(DeepCompressorColumn(n))];
    }
  }
  return ordered;
}

class QserveSource final : public LinearSource {
 public:
  QserveSource(const ForeignTensors& tensors, ckpt::Scheme scheme, ColumnOrder order)
      : tensors_(tensors), scheme_(scheme), order_(order) {}

  ckpt::Scheme scheme() const override { return scheme_; }
  absl::StatusOr<kernels::LinearWeight> Read(const ckpt::LinearSpec& linear) const override;

 private:
  absl::StatusOr<std::vector<uint8_t>> ReadBytes(const std::string& name,
                                                 const std::vector<int64_t>& shape) const;
  absl::StatusOr<std::vector<uint8_t>> ReadHalves(const std::string& name, int64_t count) const;

  const ForeignTensors& tensors_;
  const ckpt::Scheme scheme_;
  const ColumnOrder order_;
};

absl::StatusOr<std::vector<uint8_t>> QserveSource::ReadBytes(
    const std::string& name, const std::vector<int64_t>& shape) const {
  ASSIGN_OR_RETURN(ForeignTensor tensor, tensors_.Read(name, shape));
  if (tensor.dtype != Dtype::kI8 && tensor.dtype != Dtype::kU8) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} is {}, not I8", name, ckpt::DtypeName(tensor.dtype)));
  }
  return std::move(tensor.data);
}

absl::StatusOr<std::vector<uint8_t>> QserveSource::ReadHalves(const std::string& name,
                                                              int64_t count) const {
  ASSIGN_OR_RETURN(ForeignTensor tensor, tensors_.Read(name, {count}));
  if (tensor.dtype != Dtype::kF16) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} is {}, not F16", name, ckpt::DtypeName(tensor.dtype)));
  }
  return std::move(tensor.data);
}

absl::StatusOr<kernels::LinearWeight> QserveSource::Read(const ckpt::LinearSpec& linear) const {
  const bool group = scheme_ == ckpt::Scheme::kQoqGroup128;
  std::vector<uint8_t> zeros, group_scales, group_zeros;
  ASSIGN_OR_RETURN(const std::vector<uint8_t> codes,
                   ReadBytes(linear.name + ".qweight", {linear.n, linear.k / 2}));
  ASSIGN_OR_RETURN(const std::vector<uint8_t> scales,
                   ReadHalves(linear.name + ".s1_scales", linear.n));
  if (group) {
    const std::vector<int64_t> shape = {linear.k / kernels::kWeightGroup, linear.n};
    ASSIGN_OR_RETURN(group_scales, ReadBytes(linear.name + ".s2_scales", shape));
    ASSIGN_OR_RETURN(group_zeros, ReadBytes(linear.name + ".s2_zeros", shape));
    if (order_ == ColumnOrder::kDeepCompressor) {
      group_scales = ReorderColumns(group_scales, linear.n);
      group_zeros = ReorderColumns(group_zeros, linear.n);
    }
  } else {
    ASSIGN_OR_RETURN(zeros, ReadHalves(linear.name + ".s1_szeros", linear.n));
  }
  const kernels::QServeView view = {
      .format = group ? kernels::WeightFormat::kW4Group128 : kernels::WeightFormat::kW4PerChannel,
      .n = linear.n,
      .k = linear.k,
      .qweight = codes,
      .s1_scales = scales,
      .s1_szeros = zeros,
      .s2_scales = group_scales,
      .s2_zeros = group_zeros};
  kernels::StatusOr<kernels::LinearWeight> weight =
      kernels::UnpackQServe(view, {0, linear.n, 0, linear.k}, nullptr);
  if (!weight.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", linear.name, weight.status().message()));
  }
  return *std::move(weight);
}

// Weights are about zero in the mean, so that the mean code of a group is about its zero point
// where the two belong together. The mean square of what is between them; infinite where codes and
// groups cannot belong together at all.
double Mismatch(const LinearSource& source, const ckpt::LinearSpec& linear) {
  const absl::StatusOr<kernels::LinearWeight> weight = source.Read(linear);
  if (!weight.ok()) return std::numeric_limits<double>::infinity();
  double square = 0;
  const int64_t groups = weight->groups();
  for (int64_t n = 0; n < weight->n; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0;
      for (int64_t k = 0; k < kernels::kWeightGroup; ++k)
        sum += weight->codes[static_cast<size_t>(n * weight->k + g * kernels::kWeightGroup + k)];
      const auto at = static_cast<size_t>(n * groups + g);
      const double zero = -static_cast<double>(weight->group_offset[at]) / weight->group_scale[at];
      square += std::pow(sum / kernels::kWeightGroup - zero, 2);
    }
  }
  return square / static_cast<double>(weight->n * groups);
}

// The order that fits clearly better.
absl::StatusOr<ColumnOrder> DetectOrder(const ForeignTensors& tensors,
                                        const std::vector<ckpt::LinearSpec>& sample) {
  constexpr double kClearly = 2;
  double of_qserve = 0, of_deepcompressor = 0;
  for (const ckpt::LinearSpec& linear : sample) {
    of_qserve +=
        Mismatch(QserveSource(tensors, ckpt::Scheme::kQoqGroup128, ColumnOrder::kQserve), linear);
    of_deepcompressor += Mismatch(
        QserveSource(tensors, ckpt::Scheme::kQoqGroup128, ColumnOrder::kDeepCompressor), linear);
  }
  if (std::isinf(of_qserve) && std::isinf(of_deepcompressor)) {
    // Neither can be read: the reader says why.
    return ColumnOrder::kQserve;
  }
  if (of_deepcompressor > kClearly * of_qserve) return ColumnOrder::kQserve;
  if (of_qserve > kClearly * of_deepcompressor) return ColumnOrder::kDeepCompressor;
  return absl::InvalidArgumentError(fmt::format(
      "the order of the group columns cannot be told from the data (mismatch {:.3g} as QServe's "
      "converter writes, {:.3g} as DeepCompressor's does): say --column-order qserve or "
      "deepcompressor",
      of_qserve, of_deepcompressor));
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearSource>> OpenQserve(
    const ForeignTensors& tensors, const std::vector<ckpt::LinearSpec>& sample, ColumnOrder order) {
  const std::string& first = sample.front().name;
  ckpt::Scheme scheme = ckpt::Scheme::kQoqPerChannel;
  if (tensors.Has(first + ".s2_scales")) {
    scheme = ckpt::Scheme::kQoqGroup128;
    if (order == ColumnOrder::kAuto) {
      ASSIGN_OR_RETURN(order, DetectOrder(tensors, sample));
    }
  } else if (!tensors.Has(first + ".s1_szeros")) {
    return absl::InvalidArgumentError(
        tensors.Has(first + ".dequant_scale")
            ? std::string("this is a W8A8 checkpoint of QServe; only W4A8 ones are imported")
            : fmt::format("{} has none of the tensors of QServe's W4A8 layout", first));
  }
  return std::make_unique<QserveSource>(tensors, scheme, order);
}

}  // namespace qserve::quantizer
