// The safetensors format: 8 bytes of header length (little endian), a JSON header, the tensors'
// bytes. Read mapped and validated; everything in a file is taken for hostile. Called by
// checkpoint.cc on whatever thread opens a model; const methods are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mapped_file.h"
#include "common/random_access_file.h"

namespace qserve::worker::checkpoint {

// Element types of the format that a whole number of bytes holds.
enum class Dtype {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kU16,
  kI16,
  kF16,
  kBf16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64
};

int64_t DtypeBytes(Dtype dtype);
const char* DtypeName(Dtype dtype);  // as in files: "F16"
std::optional<Dtype> ParseDtype(std::string_view name);

// One tensor: [begin, end) are bytes of the file; end - begin is what dtype and shape need.
struct TensorEntry {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

// The tensors of a file whose bytes are `file`, sorted by name. Nothing beyond the header is
// touched. InvalidArgument (why, and which tensor) for: a header that does not fit (over 100 MB, or
// over the file), bad JSON, unknown members, a tensor twice, unknown dtypes, shapes that overflow,
// offsets outside the file, and tensors that overlap or leave holes, which the format forbids.
absl::StatusOr<std::vector<TensorEntry>> ParseSafetensors(std::span<const std::byte> file);

class SafetensorsFile {
 public:
  // Errors of MappedFile::Open and ParseSafetensors, with the path.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const TensorEntry* Find(std::string_view name) const;
  // Bytes of an entry of this file; valid as long as this object lives. Alignment is not promised.
  std::span<const std::byte> Data(const TensorEntry& entry) const;
  std::span<const std::byte> bytes() const { return file_.bytes(); }
  void DropPages() const { file_.DropPages(); }
  // The file once more, for reading without the mapping. FailedPrecondition where another one has
  // its path by now; errors of RandomAccessFile::Open.
  absl::StatusOr<RandomAccessFile> OpenAgain() const;
  int64_t header_bytes() const { return header_bytes_; }  // the length field included

 private:
  SafetensorsFile(std::string path, MappedFile file, std::vector<TensorEntry> tensors);
  std::string path_;
  MappedFile file_;
  std::vector<TensorEntry> tensors_;
  int64_t header_bytes_ = 0;
};

}  // namespace qserve::worker::checkpoint
