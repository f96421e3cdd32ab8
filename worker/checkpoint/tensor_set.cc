// See tensor_set.h.
#include "worker/checkpoint/tensor_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "common/check.h"
#include "common/hashing.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxFileNameBytes = 255;

// Not a path: an index must not lead out of its directory.
bool IsPlainFileName(const std::string& name) {
  const bool printable =
      std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
  return printable && name.size() <= kMaxFileNameBytes && name.ends_with(".safetensors") &&
         name.front() != '.' && name.find_first_of("/\\") == std::string::npos;
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::Status NoWeights(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(fmt::format("there is no directory {}", directory));
  }
  const bool pickled = Exists(directory + "/pytorch_model.bin") ||
                       Exists(directory + "/pytorch_model.bin.index.json");
  return absl::NotFoundError(
      fmt::format("{} has neither model.safetensors nor model.safetensors.index.json{}", directory,
                  pickled ? "; pytorch_model.bin is not served: qserve-quantize import takes over "
                            "quantized ones, others must be converted to safetensors"
                          : ""));
}

}  // namespace

absl::StatusOr<TensorSet> TensorSet::Open(const std::string& directory) {
  TensorSet set;
  const std::string single = directory + "/model.safetensors";
  const std::string index = directory + "/model.safetensors.index.json";
  if (Exists(single)) {
    RETURN_IF_ERROR(set.OpenSingle(single));
  } else if (Exists(index)) {
    RETURN_IF_ERROR(set.OpenShards(directory, index));
  } else {
    return NoWeights(directory);
  }
  return set;
}

absl::Status TensorSet::OpenSingle(const std::string& path) {
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  files_.push_back(std::move(file));
  const std::vector<TensorEntry>& entries = files_.back().tensors();
  for (size_t i = 0; i < entries.size(); ++i) tensors_.emplace(entries[i].name, Place{0, i});
  return absl::OkStatus();
}

absl::Status TensorSet::OpenShards(const std::string& directory, const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(index_path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const nlohmann::json index, ParseJsonObject(text, index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: weight_map is missing", index_path));
  }
  std::map<std::string, size_t> shards;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>())) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} must be in a .safetensors file of the same directory",
                      index_path, Printable(tensor)));
    }
    shards.emplace(file.get<std::string>(), 0);
    if (shards.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          fmt::format("{}: more than {} files", index_path, kMaxShards));
    }
  }
  for (auto& [name, number] : shards) {
    const std::string path = directory + "/" + name;
    if (!Exists(path)) {
      return absl::NotFoundError(fmt::format("{} is missing, which {} names", path, index_path));
    }
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
    number = files_.size();
    files_.push_back(std::move(file));
  }
  for (const auto& [tensor, file] : map->items()) {
    const size_t number = shards.at(file.get<std::string>());
    const TensorEntry* entry = files_[number].Find(tensor);
    if (entry == nullptr) {
      return absl::InvalidArgumentError(fmt::format("{}: tensor {} is not in {}", index_path,
                                                    Printable(tensor), file.get<std::string>()));
    }
    const auto position = static_cast<size_t>(entry - files_[number].tensors().data());
    tensors_.emplace(tensor, Place{number, position});
  }
  return absl::OkStatus();
}

std::optional<TensorView> TensorSet::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return std::nullopt;
  const SafetensorsFile& file = files_[found->second.file];
  const TensorEntry& entry = file.tensors()[found->second.entry];
  const std::span<const std::byte> data = file.Data(entry);
  return TensorView{
      entry.dtype, entry.shape, {reinterpret_cast<const uint8_t*>(data.data()), data.size()}};
}

absl::StatusOr<TensorFile> TensorSet::OpenFile(std::string_view name) const {
  const auto found = tensors_.find(name);
  QSERVE_CHECK(found != tensors_.end());
  const SafetensorsFile& file = files_[found->second.file];
  ASSIGN_OR_RETURN(RandomAccessFile opened, file.OpenAgain());
  return TensorFile{std::move(opened), file.tensors()[found->second.entry].begin};
}

std::vector<std::string> TensorSet::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : tensors_) names.push_back(name);
  return names;
}

uint64_t TensorSet::Digest(uint64_t seed, int64_t& bytes_read) const {
  constexpr size_t kSampleBytes = 32;  // at the start, the middle and the end of each tensor
  uint64_t digest = seed;
  for (const SafetensorsFile& file : files_) {
    const std::span<const std::byte> bytes = file.bytes();
    digest =
        HashBytes(bytes.first(static_cast<size_t>(file.header_bytes())), digest ^ bytes.size());
    for (const TensorEntry& entry : file.tensors()) {
      const std::span<const std::byte> data = file.Data(entry);
      const size_t size = std::min(kSampleBytes, data.size());
      for (const size_t begin : {size_t{0}, (data.size() - size) / 2, data.size() - size}) {
        digest = HashBytes(data.subspan(begin, size), digest);
        bytes_read += static_cast<int64_t>(size);
      }
    }
  }
  return digest;
}

void TensorSet::DropPages() const {
  for (const SafetensorsFile& file : files_) file.DropPages();
}

}  // namespace qserve::worker::checkpoint
