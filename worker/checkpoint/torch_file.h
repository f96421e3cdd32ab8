// A file of torch.save (pytorch_model.bin, model.pt): a zip archive of a pickle and raw storages,
// mapped and read without executing anything. Called by the importer of checkpoints
// (quantizer/import); const methods are thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mapped_file.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::worker::checkpoint {

// A tensor of an archive: its bytes if it is contiguous, else views of its storage.
struct TorchTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements
  size_t begin = 0;              // of the first element in the file
};

// The tensors of an archive whose bytes are `file`, sorted by name, each within it. InvalidArgument
// for what is no archive of torch.save (older files are bare pickles), is damaged or needs more
// than a dictionary of tensors does.
absl::StatusOr<std::vector<TorchTensor>> ParseTorchFile(std::span<const std::byte> file);

class TorchFile {
 public:
  // Errors of MappedFile::Open and ParseTorchFile, with the path.
  static absl::StatusOr<TorchFile> Open(const std::string& path);

  const std::vector<TorchTensor>& tensors() const { return tensors_; }
  const TorchTensor* Find(std::string_view name) const;
  // The elements in row-major order.
  std::vector<uint8_t> Read(const TorchTensor& tensor) const;

 private:
  TorchFile(MappedFile file, std::vector<TorchTensor> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}
  MappedFile file_;
  std::vector<TorchTensor> tensors_;
};

}  // namespace qserve::worker::checkpoint
