// See safetensors.h.
#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/safetensors_header.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr uint64_t kLengthBytes = 8;

struct DtypeInfo {
  Dtype dtype;
  const char* name;
  int64_t bytes;
};

constexpr DtypeInfo kDtypes[] = {
    {Dtype::kBool, "BOOL", 1},      {Dtype::kU8, "U8", 1},          {Dtype::kI8, "I8", 1},
    {Dtype::kF8E5M2, "F8_E5M2", 1}, {Dtype::kF8E4M3, "F8_E4M3", 1}, {Dtype::kU16, "U16", 2},
    {Dtype::kI16, "I16", 2},        {Dtype::kF16, "F16", 2},        {Dtype::kBf16, "BF16", 2},
    {Dtype::kU32, "U32", 4},        {Dtype::kI32, "I32", 4},        {Dtype::kF32, "F32", 4},
    {Dtype::kU64, "U64", 8},        {Dtype::kI64, "I64", 8},        {Dtype::kF64, "F64", 8},
};

const DtypeInfo& InfoOf(Dtype dtype) {
  const auto index = static_cast<size_t>(dtype);
  QSERVE_CHECK(index < std::size(kDtypes) && kDtypes[index].dtype == dtype);
  return kDtypes[index];
}

// Bytes that dtype and shape need; nothing on overflow.
std::optional<int64_t> NeededBytes(const TensorEntry& entry) {
  int64_t bytes = DtypeBytes(entry.dtype);
  for (const int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::Status CheckTensor(const TensorEntry& entry, int64_t data_bytes) {
  const std::string name = Printable(entry.name);
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return absl::InvalidArgumentError(fmt::format(
        "tensor {}: data_offsets [{}, {}) do not lie within the {} bytes of data that the file has",
        name, entry.begin, entry.end, data_bytes));
  }
  const std::optional<int64_t> needed = NeededBytes(entry);
  if (!needed)
    return absl::InvalidArgumentError(fmt::format("tensor {}: the shape overflows", name));
  if (*needed != entry.end - entry.begin) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {}: dtype and shape need {} bytes, data_offsets give {}", name, *needed,
                    entry.end - entry.begin));
  }
  return absl::OkStatus();
}

// The tensors cover the data exactly: the format allows neither overlaps nor holes.
absl::Status CheckCoverage(const std::vector<TensorEntry>& tensors, int64_t data_bytes) {
  std::vector<const TensorEntry*> by_offset;
  by_offset.reserve(tensors.size());
  for (const TensorEntry& entry : tensors) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  int64_t covered = 0;
  for (const TensorEntry* entry : by_offset) {
    if (entry->begin != covered) {
      return absl::InvalidArgumentError(fmt::format(
          "tensor {}: data_offsets {}", Printable(entry->name),
          entry->begin < covered ? "overlap another tensor" : "leave a hole before it"));
    }
    covered = entry->end;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes after the last tensor belong to none", data_bytes - covered));
  }
  return absl::OkStatus();
}

uint64_t HeaderLength(std::span<const std::byte> file) {
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    length |= uint64_t{std::to_integer<uint8_t>(file[i])} << (8 * i);
  return length;
}

}  // namespace

int64_t DtypeBytes(Dtype dtype) { return InfoOf(dtype).bytes; }

const char* DtypeName(Dtype dtype) { return InfoOf(dtype).name; }

std::optional<Dtype> ParseDtype(std::string_view name) {
  for (const DtypeInfo& info : kDtypes) {
    if (name == info.name) return info.dtype;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<TensorEntry>> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes are too few for a safetensors file", file.size()));
  }
  const uint64_t length = HeaderLength(file);
  if (length > kMaxHeaderBytes || length > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(fmt::format(
        "a header of {} bytes is claimed, but {}", length,
        length > kMaxHeaderBytes
            ? fmt::format("at most {} are allowed", kMaxHeaderBytes)
            : fmt::format("only {} follow (is the file truncated?)", file.size() - kLengthBytes)));
  }
  const std::string_view header(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!header.starts_with('{'))
    return absl::InvalidArgumentError("the header does not begin with '{'");
  ASSIGN_OR_RETURN(std::vector<TensorEntry> tensors, ParseSafetensorsHeader(header));
  const auto data_begin = static_cast<int64_t>(kLengthBytes + length);
  const int64_t data_bytes = static_cast<int64_t>(file.size()) - data_begin;
  for (const TensorEntry& entry : tensors) RETURN_IF_ERROR(CheckTensor(entry, data_bytes));
  RETURN_IF_ERROR(CheckCoverage(tensors, data_bytes));
  for (TensorEntry& entry : tensors) {
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
  return tensors;
}

SafetensorsFile::SafetensorsFile(std::string path, MappedFile file,
                                 std::vector<TensorEntry> tensors)
    : path_(std::move(path)),
      file_(std::move(file)),
      tensors_(std::move(tensors)),
      header_bytes_(static_cast<int64_t>(kLengthBytes + HeaderLength(file_.bytes()))) {}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<std::vector<TensorEntry>> tensors = ParseSafetensors(file.bytes());
  if (!tensors.ok()) {
    return absl::Status(tensors.status().code(),
                        fmt::format("{}: {}", path, std::string(tensors.status().message())));
  }
  return SafetensorsFile(path, std::move(file), *std::move(tensors));
}

absl::StatusOr<RandomAccessFile> SafetensorsFile::OpenAgain() const {
  ASSIGN_OR_RETURN(RandomAccessFile file, RandomAccessFile::Open(path_));
  if (file.identity() == file_.identity()) return file;
  return absl::FailedPreconditionError(
      fmt::format("{} was replaced while it was being read", path_));
}

const TensorEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorEntry& entry, std::string_view key) { return entry.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

std::span<const std::byte> SafetensorsFile::Data(const TensorEntry& entry) const {
  return file_.bytes().subspan(static_cast<size_t>(entry.begin),
                               static_cast<size_t>(entry.end - entry.begin));
}

}  // namespace qserve::worker::checkpoint
