// See foreign_tensors.h.
#include "quantizer/import/foreign_tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "worker/checkpoint/json_text.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Dtype;

constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxShards = 4096;

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

// Not a path: an index must not lead out of its directory.
bool IsPlainFileName(const std::string& name) {
  const bool printable =
      std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
  return printable && !name.empty() && name.size() <= 255 && name.front() != '.' &&
         name.find_first_of("/\\") == std::string::npos;
}

template <class T>
float Number(const uint8_t* data) {
  T value = 0;
  std::memcpy(&value, data, sizeof(value));
  return static_cast<float>(value);
}

// NaN for types that are no numbers.
float FloatOf(Dtype dtype, const uint8_t* data) {
  switch (dtype) {
    case Dtype::kF16:
      return kernels::HalfToFloat(static_cast<uint16_t>(data[0] | data[1] << 8));
    case Dtype::kBf16:
      return kernels::Bf16ToFloat(static_cast<uint16_t>(data[0] | data[1] << 8));
    case Dtype::kF32:
      return Number<float>(data);
    case Dtype::kF64:
      return Number<double>(data);
    case Dtype::kI8:
      return Number<int8_t>(data);
    case Dtype::kU8:
      return Number<uint8_t>(data);
    case Dtype::kI16:
      return Number<int16_t>(data);
    case Dtype::kI32:
      return Number<int32_t>(data);
    case Dtype::kI64:
      return Number<int64_t>(data);
    default:
      return NAN;
  }
}

}  // namespace

int64_t ForeignTensor::elements() const { return std::ssize(data) / ckpt::DtypeBytes(dtype); }

absl::StatusOr<ForeignTensors> ForeignTensors::OpenDirectory(const std::string& directory) {
  ForeignTensors tensors;
  if (Exists(directory + "/model.safetensors") ||
      Exists(directory + "/model.safetensors.index.json")) {
    ASSIGN_OR_RETURN(tensors.safetensors_, ckpt::TensorSet::Open(directory));
    return tensors;
  }
  for (const char* name : {"pytorch_model.bin", "model.pt", "quant_model.pt"}) {
    const std::string path = fmt::format("{}/{}", directory, name);
    if (!Exists(path)) continue;
    RETURN_IF_ERROR(tensors.AddTorch(path));
    return tensors;
  }
  const std::string index = directory + "/pytorch_model.bin.index.json";
  if (!Exists(index)) {
    return absl::NotFoundError(
        fmt::format("{} has none of model.safetensors, pytorch_model.bin, their indices, model.pt "
                    "and quant_model.pt",
                    directory));
  }
  RETURN_IF_ERROR(tensors.AddTorchShards(directory, index));
  return tensors;
}

absl::StatusOr<ForeignTensors> ForeignTensors::OpenTorch(const std::string& path) {
  ForeignTensors tensors;
  RETURN_IF_ERROR(tensors.AddTorch(path));
  return tensors;
}

absl::Status ForeignTensors::AddTorch(const std::string& path) {
  ASSIGN_OR_RETURN(ckpt::TorchFile file, ckpt::TorchFile::Open(path));
  for (const ckpt::TorchTensor& tensor : file.tensors()) {
    if (!places_.emplace(tensor.name, files_.size()).second) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} is in another file too", path, ckpt::Printable(tensor.name)));
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status ForeignTensors::AddTorchShards(const std::string& directory,
                                            const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(index_path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const nlohmann::json index, ckpt::ParseJsonObject(text, index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object())
    return absl::InvalidArgumentError(fmt::format("{}: weight_map is missing", index_path));
  std::set<std::string> shards;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>()) ||
        shards.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} must be in a file of the same directory", index_path,
                      ckpt::Printable(tensor)));
    }
    shards.insert(file.get<std::string>());
  }
  for (const std::string& shard : shards) {
    const std::string path = fmt::format("{}/{}", directory, shard);
    if (!Exists(path))
      return absl::NotFoundError(fmt::format("{} is missing, which {} names", path, index_path));
    RETURN_IF_ERROR(AddTorch(path));
  }
  return absl::OkStatus();
}

bool ForeignTensors::Has(std::string_view name) const {
  return safetensors_ ? safetensors_->Has(name) : places_.contains(name);
}

std::vector<std::string> ForeignTensors::Names() const {
  if (safetensors_) return safetensors_->Names();
  std::vector<std::string> names;
  for (const auto& [name, file] : places_) names.push_back(name);
  return names;
}

absl::StatusOr<ForeignTensor> ForeignTensors::Read(const std::string& name,
                                                   const std::vector<int64_t>& shape) const {
  if (!Has(name)) return absl::InvalidArgumentError(fmt::format("tensor {} is missing", name));
  ForeignTensor tensor;
  if (safetensors_) {
    const ckpt::TensorView view = *safetensors_->Find(name);
    tensor = {.dtype = view.dtype,
              .shape = {view.shape.begin(), view.shape.end()},
              .data = {view.data.begin(), view.data.end()}};
  } else {
    const ckpt::TorchFile& file = files_[places_.find(name)->second];
    const ckpt::TorchTensor& found = *file.Find(name);
    tensor = {.dtype = found.dtype, .shape = found.shape, .data = file.Read(found)};
  }
  if (!shape.empty() && tensor.shape != shape) {
    return absl::InvalidArgumentError(fmt::format("tensor {} has the shape [{}], not [{}]", name,
                                                  fmt::join(tensor.shape, ", "),
                                                  fmt::join(shape, ", ")));
  }
  return tensor;
}

absl::StatusOr<std::vector<float>> ForeignTensors::ReadFloats(const std::string& name,
                                                              int64_t elements) const {
  ASSIGN_OR_RETURN(const ForeignTensor tensor, Read(name));
  if (tensor.elements() != elements) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} has {} elements, not {}", name, tensor.elements(), elements));
  }
  std::vector<float> values(static_cast<size_t>(elements));
  const auto bytes = static_cast<size_t>(ckpt::DtypeBytes(tensor.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = FloatOf(tensor.dtype, tensor.data.data() + i * bytes);
    if (std::isfinite(values[i])) continue;
    return absl::InvalidArgumentError(
        fmt::format("tensor {}: element {} of type {} is not a finite number", name, i,
                    ckpt::DtypeName(tensor.dtype)));
  }
  return values;
}

}  // namespace qserve::quantizer
