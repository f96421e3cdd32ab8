// All tensors of a model directory, whichever of its safetensors files they are in. Called by
// checkpoint.cc and the quantizer; const methods are thread-safe. Owns the mappings.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::worker::checkpoint {

// A tensor in a mapped file. Not aligned.
struct TensorView {
  Dtype dtype = Dtype::kF32;
  std::span<const int64_t> shape;
  std::span<const uint8_t> data;
};

// The same to be read from the file; begin is its first byte there.
struct TensorFile {
  RandomAccessFile file;
  int64_t begin = 0;
};

class TensorSet {
 public:
  // model.safetensors, else the shards of model.safetensors.index.json. NotFound if a file is
  // missing (by name), InvalidArgument for malformed ones, for index entries that name no plain
  // file of the directory, and for tensors that are not where the index says.
  static absl::StatusOr<TensorSet> Open(const std::string& directory);

  // Valid as long as this object lives.
  std::optional<TensorView> Find(std::string_view name) const;
  // Of a tensor that is there. Independent of this object; errors of SafetensorsFile::OpenAgain.
  absl::StatusOr<TensorFile> OpenFile(std::string_view name) const;
  bool Has(std::string_view name) const { return tensors_.contains(name); }
  std::vector<std::string> Names() const;  // sorted

  // Hash of all headers, file sizes and a sample of every tensor. Adds the bytes of data looked at
  // to `bytes_read`.
  uint64_t Digest(uint64_t seed, int64_t& bytes_read) const;

  // Gives back the pages of all files that were touched so far (MappedFile::DropPages).
  void DropPages() const;

 private:
  struct Place {
    size_t file = 0;
    size_t entry = 0;
  };
  absl::Status OpenSingle(const std::string& path);
  absl::Status OpenShards(const std::string& directory, const std::string& index_path);

  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace qserve::worker::checkpoint
