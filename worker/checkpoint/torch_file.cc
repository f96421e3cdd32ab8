// See torch_file.h.
#include "worker/checkpoint/torch_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/pickled_state.h"
#include "worker/checkpoint/zip_directory.h"

namespace qserve::worker::checkpoint {
namespace {

const ZipEntry* Find(const std::vector<ZipEntry>& entries, const std::string& name) {
  const auto found = std::lower_bound(
      entries.begin(), entries.end(), name,
      [](const ZipEntry& entry, const std::string& key) { return entry.name < key; });
  return found != entries.end() && found->name == name ? &*found : nullptr;
}

// "archive/data.pkl": the folder has the name that the file was saved under.
absl::StatusOr<std::string> FindFolder(const std::vector<ZipEntry>& entries) {
  constexpr std::string_view kPickle = "/data.pkl";
  std::string folder;
  for (const ZipEntry& entry : entries) {
    if (!entry.name.ends_with(kPickle)) continue;
    if (!folder.empty()) return absl::InvalidArgumentError("the archive has two data.pkl");
    folder = entry.name.substr(0, entry.name.size() - kPickle.size());
  }
  if (folder.empty())
    return absl::InvalidArgumentError("the archive has no data.pkl: it is not one of torch.save");
  return folder;
}

std::string_view TextOf(std::span<const std::byte> file, const ZipEntry& entry) {
  return {reinterpret_cast<const char*>(file.data()) + entry.begin, entry.size};
}

bool Contiguous(const TorchTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

}  // namespace

absl::StatusOr<std::vector<TorchTensor>> ParseTorchFile(std::span<const std::byte> file) {
  if (file.size() < 4 || file[0] != std::byte{'P'} || file[1] != std::byte{'K'}) {
    return absl::InvalidArgumentError(
        "this is no zip archive; files that torch saved before 1.6 are not read: save it anew");
  }
  ASSIGN_OR_RETURN(const std::vector<ZipEntry> entries, ReadZipDirectory(file));
  ASSIGN_OR_RETURN(const std::string folder, FindFolder(entries));
  const ZipEntry* order = Find(entries, folder + "/byteorder");
  if (order != nullptr && TextOf(file, *order) != "little")
    return absl::InvalidArgumentError("the archive is not little-endian");
  ASSIGN_OR_RETURN(std::vector<PickledTensor> pickled,
                   ReadPickledState(TextOf(file, *Find(entries, folder + "/data.pkl"))));
  std::vector<TorchTensor> tensors;
  for (PickledTensor& from : pickled) {
    const ZipEntry* storage = Find(entries, folder + "/data/" + from.storage);
    int64_t bytes = 0;
    if (storage == nullptr ||
        __builtin_mul_overflow(from.storage_elements, DtypeBytes(from.dtype), &bytes) ||
        static_cast<uint64_t>(bytes) > storage->size) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {}: its storage {} is missing or too short", Printable(from.name),
                      Printable(from.storage)));
    }
    tensors.push_back(
        {.name = std::move(from.name),
         .dtype = from.dtype,
         .shape = std::move(from.shape),
         .strides = std::move(from.strides),
         .begin = storage->begin + static_cast<size_t>(from.offset * DtypeBytes(from.dtype))});
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TorchTensor& a, const TorchTensor& b) { return a.name < b.name; });
  return tensors;
}

absl::StatusOr<TorchFile> TorchFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<std::vector<TorchTensor>> tensors = ParseTorchFile(file.bytes());
  if (!tensors.ok()) {
    return absl::Status(tensors.status().code(),
                        fmt::format("{}: {}", path, std::string(tensors.status().message())));
  }
  return TorchFile(std::move(file), *std::move(tensors));
}

const TorchTensor* TorchFile::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TorchTensor& tensor, std::string_view key) { return tensor.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

std::vector<uint8_t> TorchFile::Read(const TorchTensor& tensor) const {
  const auto element = static_cast<size_t>(DtypeBytes(tensor.dtype));
  size_t count = 1;
  for (const int64_t size : tensor.shape) count *= static_cast<size_t>(size);
  std::vector<uint8_t> bytes(count * element);
  if (count == 0) return bytes;
  const std::byte* from = file_.bytes().data() + tensor.begin;
  if (Contiguous(tensor)) {
    std::memcpy(bytes.data(), from, bytes.size());
    return bytes;
  }
  std::vector<int64_t> index(tensor.shape.size(), 0);
  for (size_t i = 0; i < count; ++i) {
    int64_t at = 0;
    for (size_t d = 0; d < index.size(); ++d) at += index[d] * tensor.strides[d];
    std::memcpy(bytes.data() + i * element, from + static_cast<size_t>(at) * element, element);
    for (size_t d = index.size(); d-- > 0;) {
      if (++index[d] < tensor.shape[d]) break;
      index[d] = 0;
    }
  }
  return bytes;
}

}  // namespace qserve::worker::checkpoint
