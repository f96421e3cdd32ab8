// Checkpoint over the mapped tensors of a directory. Reading copies the bytes of a slice into
// canonical form, so nothing else is touched and the mapping needs no alignment.
#include "worker/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "common/hashing.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "kernels/quant/qserve_pack.h"
#include "kernels/quant/rtn.h"
#include "worker/checkpoint/checkpoint_shape.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/checkpoint/tensor_set.h"

namespace qserve::worker::checkpoint {
namespace {

using kernels::FloatType;
using kernels::LinearWeight;
using kernels::WeightFormat;

// Rows quantized at a time at load: bounds the fp32 copy, and rows are quantized independently.
constexpr int64_t kQuantizedRows = 128;
// Of the mapped files, so much may be touched before its pages are given back: what was read is in
// a copy and seldom wanted again.
constexpr int64_t kMostTouchedBytes = int64_t{16} << 20;

absl::Status FromKernels(const std::string& name, const kernels::Status& status) {
  return absl::InvalidArgumentError(fmt::format("tensor {}: {}", name, status.message()));
}

std::optional<FloatType> FloatTypeOf(Dtype dtype) {
  if (dtype == Dtype::kF32) return FloatType::kF32;
  if (dtype == Dtype::kF16) return FloatType::kF16;
  if (dtype == Dtype::kBf16) return FloatType::kBf16;
  return std::nullopt;
}

void ToFloats(FloatType type, std::span<const uint8_t> raw, float* out) {
  if (type == FloatType::kF32) {
    std::memcpy(out, raw.data(), raw.size());
    return;
  }
  for (size_t i = 0; i < raw.size() / 2; ++i) {
    uint16_t bits;
    std::memcpy(&bits, raw.data() + 2 * i, sizeof(bits));
    out[i] = type == FloatType::kF16 ? kernels::HalfToFloat(bits) : kernels::Bf16ToFloat(bits);
  }
}

// A 2-d floating-point tensor.
struct FloatTensor {
  FloatType type = FloatType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t element_bytes = 0;
  std::span<const uint8_t> data;

  std::span<const uint8_t> Row(int64_t row, Range columns) const {
    return data.subspan(static_cast<size_t>((row * cols + columns.begin) * element_bytes),
                        static_cast<size_t>(columns.size() * element_bytes));
  }
};

absl::Status CheckRange(const std::string& name, Range rows, Range columns, int64_t n, int64_t k) {
  const auto inside = [](Range range, int64_t size) {
    return range.begin >= 0 && range.begin < range.end && range.end <= size;
  };
  if (inside(rows, n) && inside(columns, k)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor {} is {} x {}; rows [{}, {}), columns [{}, {}) are not in it", name, n, k,
                  rows.begin, rows.end, columns.begin, columns.end));
}

class DirectoryCheckpoint : public Checkpoint {
 public:
  DirectoryCheckpoint(TensorSet tensors, ModelConfig config, GenerationDefaults defaults,
                      uint64_t config_hash)
      : tensors_(std::move(tensors)), config_(std::move(config)), defaults_(defaults) {
    int64_t sampled = 0;
    digest_ = tensors_.Digest(config_hash, sampled);
    bytes_read_ = sampled;
    tensors_.DropPages();
  }

  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  bool Has(const std::string& tensor_name) const override { return tensors_.Has(tensor_name); }
  uint64_t digest() const override { return digest_; }
  int64_t bytes_read() const override { return bytes_read_; }

  absl::StatusOr<LinearWeight> ReadLinear(const std::string& name, Range rows, Range columns,
                                          LoadQuantization quantization) const override {
    absl::StatusOr<LinearWeight> weight = tensors_.Has(name + ".qweight")
                                              ? ReadPacked(name, rows, columns, quantization)
                                              : ReadFloat(name, rows, columns, quantization);
    if (!weight.ok() || columns.begin != 0 || !tensors_.Has(name + ".bias")) return weight;
    ASSIGN_OR_RETURN(const std::vector<float> bias, ReadVectorRange(name + ".bias", rows));
    weight->bias = bias;
    return weight;
  }

  absl::StatusOr<std::vector<float>> ReadVector(const std::string& name,
                                                int64_t size) const override {
    ASSIGN_OR_RETURN(std::vector<float> values, ReadVectorRange(name, {0, size}));
    if (tensors_.Find(name)->shape[0] != size) {
      return absl::InvalidArgumentError(fmt::format("tensor {} has {} elements, expected {}", name,
                                                    tensors_.Find(name)->shape[0], size));
    }
    return values;
  }

  absl::StatusOr<FloatMatrix> ReadRows(const std::string& name, Range rows,
                                       int64_t cols) const override {
    ASSIGN_OR_RETURN(const FloatTensor tensor, FindRows(name, rows, cols));
    FloatMatrix matrix{tensor.type, rows.size(), cols, {}};
    const uint8_t* begin = tensor.Row(rows.begin, {0, cols}).data();
    matrix.data.assign(begin, begin + rows.size() * cols * tensor.element_bytes);
    Count(static_cast<int64_t>(matrix.data.size()));
    return matrix;
  }

  absl::StatusOr<StoredRows> OpenRows(const std::string& name, Range rows,
                                      int64_t cols) const override {
    ASSIGN_OR_RETURN(const FloatTensor tensor, FindRows(name, rows, cols));
    ASSIGN_OR_RETURN(TensorFile opened, tensors_.OpenFile(name));
    return StoredRows(std::move(opened.file), name,
                      opened.begin + rows.begin * cols * tensor.element_bytes, tensor.type,
                      rows.size(), cols);
  }

 private:
  // Bytes of the mapped files that have been copied. Other threads' reading goes on meanwhile: what
  // is taken from under them comes again from the page cache.
  void Count(int64_t bytes) const {
    const int64_t before = bytes_read_.fetch_add(bytes, std::memory_order_relaxed);
    if (before / kMostTouchedBytes != (before + bytes) / kMostTouchedBytes) tensors_.DropPages();
  }

  absl::StatusOr<TensorView> Find(const std::string& name, size_t rank) const {
    const std::optional<TensorView> tensor = tensors_.Find(name);
    if (!tensor) return absl::InvalidArgumentError(fmt::format("tensor {} is missing", name));
    if (tensor->shape.size() != rank) {
      return absl::InvalidArgumentError(fmt::format("tensor {} has {} dimensions, expected {}",
                                                    name, tensor->shape.size(), rank));
    }
    return *tensor;
  }

  absl::StatusOr<FloatTensor> FindFloat(const std::string& name) const {
    ASSIGN_OR_RETURN(const TensorView view, Find(name, 2));
    const std::optional<FloatType> type = FloatTypeOf(view.dtype);
    if (!type) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {} has the dtype {}, which is no supported floating-point type", name,
                      DtypeName(view.dtype)));
    }
    return FloatTensor{*type, view.shape[0], view.shape[1], DtypeBytes(view.dtype), view.data};
  }

  // A tensor of `cols` columns that has these rows.
  absl::StatusOr<FloatTensor> FindRows(const std::string& name, Range rows, int64_t cols) const {
    ASSIGN_OR_RETURN(const FloatTensor tensor, FindFloat(name));
    if (tensor.cols != cols) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {} has {} columns, expected {}", name, tensor.cols, cols));
    }
    RETURN_IF_ERROR(CheckRange(name, rows, {0, cols}, tensor.rows, tensor.cols));
    return tensor;
  }

  absl::StatusOr<std::vector<float>> ReadVectorRange(const std::string& name, Range range) const {
    ASSIGN_OR_RETURN(const TensorView view, Find(name, 1));
    const std::optional<FloatType> type = FloatTypeOf(view.dtype);
    if (!type) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {} has the dtype {}, which is no supported floating-point type", name,
                      DtypeName(view.dtype)));
    }
    RETURN_IF_ERROR(CheckRange(name, range, {0, 1}, view.shape[0], 1));
    const int64_t bytes = DtypeBytes(view.dtype);
    std::vector<float> values(static_cast<size_t>(range.size()));
    ToFloats(*type,
             view.data.subspan(static_cast<size_t>(range.begin * bytes),
                               static_cast<size_t>(range.size() * bytes)),
             values.data());
    Count(range.size() * bytes);
    return values;
  }

  absl::StatusOr<LinearWeight> ReadPacked(const std::string& name, Range rows, Range columns,
                                          LoadQuantization quantization) const;
  absl::StatusOr<LinearWeight> ReadFloat(const std::string& name, Range rows, Range columns,
                                         LoadQuantization quantization) const;
  absl::StatusOr<LinearWeight> QuantizeRows(const std::string& name, const FloatTensor& tensor,
                                            Range rows, Range columns,
                                            LoadQuantization quantization) const;

  TensorSet tensors_;
  ModelConfig config_;
  GenerationDefaults defaults_;
  uint64_t digest_ = 0;
  mutable std::atomic<int64_t> bytes_read_ = 0;
};

absl::StatusOr<LinearWeight> DirectoryCheckpoint::ReadPacked(const std::string& name, Range rows,
                                                             Range columns,
                                                             LoadQuantization quantization) const {
  if (quantization != LoadQuantization::kNone) {
    return absl::InvalidArgumentError(
        fmt::format("{} is quantized already; it cannot be quantized at load", name));
  }
  kernels::QServeView view;
  ASSIGN_OR_RETURN(const TensorView codes, Find(name + ".qweight", 2));
  ASSIGN_OR_RETURN(const TensorView scales, Find(name + ".s1_scales", 1));
  view.n = codes.shape[0];
  view.k = 2 * codes.shape[1];
  view.qweight = codes.data;
  view.s1_scales = scales.data;
  if (config_.scheme == Scheme::kQoqPerChannel) {
    view.format = WeightFormat::kW4PerChannel;
    ASSIGN_OR_RETURN(const TensorView zeros, Find(name + ".s1_szeros", 1));
    view.s1_szeros = zeros.data;
  } else {
    view.format = WeightFormat::kW4Group128;
    ASSIGN_OR_RETURN(const TensorView group_scales, Find(name + ".s2_scales", 2));
    ASSIGN_OR_RETURN(const TensorView group_zeros, Find(name + ".s2_zeros", 2));
    view.s2_scales = group_scales.data;
    view.s2_zeros = group_zeros.data;
  }
  int64_t touched = 0;
  kernels::StatusOr<LinearWeight> weight =
      kernels::UnpackQServe(view, {rows.begin, rows.end, columns.begin, columns.end}, &touched);
  if (!weight.ok()) return FromKernels(name, weight.status());
  Count(touched);
  return *std::move(weight);
}

absl::StatusOr<LinearWeight> DirectoryCheckpoint::ReadFloat(const std::string& name, Range rows,
                                                            Range columns,
                                                            LoadQuantization quantization) const {
  const std::string weight_name = name + ".weight";
  ASSIGN_OR_RETURN(const FloatTensor tensor, FindFloat(weight_name));
  RETURN_IF_ERROR(CheckRange(weight_name, rows, columns, tensor.rows, tensor.cols));
  if (quantization != LoadQuantization::kNone) {
    return QuantizeRows(weight_name, tensor, rows, columns, quantization);
  }
  LinearWeight weight;
  weight.format = WeightFormat::kFloat;
  weight.float_type = tensor.type;
  weight.n = rows.size();
  weight.k = columns.size();
  weight.floats.reserve(static_cast<size_t>(weight.n * weight.k * tensor.element_bytes));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const std::span<const uint8_t> values = tensor.Row(row, columns);
    weight.floats.insert(weight.floats.end(), values.begin(), values.end());
    Count(std::ssize(values));
  }
  return weight;
}

// Whole rows are quantized and then cut, so that a row-parallel slice has the codes and scales of
// the whole matrix.
absl::StatusOr<LinearWeight> DirectoryCheckpoint::QuantizeRows(
    const std::string& name, const FloatTensor& tensor, Range rows, Range columns,
    LoadQuantization quantization) const {
  std::vector<LinearWeight> pieces;
  std::vector<float> values(
      static_cast<size_t>(std::min(kQuantizedRows, rows.size()) * tensor.cols));
  for (int64_t begin = rows.begin; begin < rows.end; begin += kQuantizedRows) {
    const int64_t count = std::min(kQuantizedRows, rows.end - begin);
    const auto bytes = static_cast<size_t>(count * tensor.cols * tensor.element_bytes);
    ToFloats(tensor.type, {tensor.Row(begin, {0, tensor.cols}).data(), bytes}, values.data());
    Count(static_cast<int64_t>(bytes));
    kernels::StatusOr<LinearWeight> piece =
        quantization == LoadQuantization::kRtnGroup128
            ? kernels::RtnGroup128(values.data(), count, tensor.cols)
            : kernels::RtnPerChannel(values.data(), count, tensor.cols);
    if (!piece.ok()) {
      return FromKernels(fmt::format("{}, rows from {} on", name, begin), piece.status());
    }
    pieces.push_back(columns.size() == tensor.cols
                         ? *std::move(piece)
                         : kernels::SliceColumns(*piece, columns.begin, columns.end));
  }
  std::vector<const LinearWeight*> parts;
  for (const LinearWeight& piece : pieces) parts.push_back(&piece);
  kernels::StatusOr<LinearWeight> whole = kernels::ConcatenateRows(parts);
  if (!whole.ok()) return FromKernels(name, whole.status());
  return *std::move(whole);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadSmallFile(directory + "/config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(directory));
  ASSIGN_OR_RETURN(const GenerationDefaults defaults, ReadGenerationDefaults(directory));
  ASSIGN_OR_RETURN(TensorSet tensors, TensorSet::Open(directory));
  const auto in_directory = [&](const absl::Status& status) {
    return absl::Status(status.code(),
                        fmt::format("{}: {}", directory, std::string(status.message())));
  };
  if (config.scheme == Scheme::kFloat) {
    const absl::StatusOr<Scheme> scheme = DetectScheme(tensors);
    if (!scheme.ok()) return in_directory(scheme.status());
    config.scheme = *scheme;
  }
  if (const absl::Status status = CheckTensors(config, tensors); !status.ok())
    return in_directory(status);
  return std::unique_ptr<Checkpoint>(std::make_unique<DirectoryCheckpoint>(
      std::move(tensors), std::move(config), defaults, HashBytes(std::as_bytes(std::span(text)))));
}

}  // namespace qserve::worker::checkpoint
