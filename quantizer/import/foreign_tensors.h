// The tensors of a directory or file that another program wrote, safetensors or torch.save alike.
// Called by the readers of formats beside it; const methods are thread-safe. Owns the mappings.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/tensor_set.h"
#include "worker/checkpoint/torch_file.h"

namespace qserve::quantizer {

// In row-major order.
struct ForeignTensor {
  worker::checkpoint::Dtype dtype = worker::checkpoint::Dtype::kF32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> data;

  int64_t elements() const;
};

class ForeignTensors {
 public:
  // model.safetensors or its shards, else pytorch_model.bin or its shards, else model.pt or
  // quant_model.pt. NotFound if there is none of them; errors of the readers.
  static absl::StatusOr<ForeignTensors> OpenDirectory(const std::string& directory);
  // One file of torch.save.
  static absl::StatusOr<ForeignTensors> OpenTorch(const std::string& path);

  bool Has(std::string_view name) const;
  std::vector<std::string> Names() const;  // sorted

  // InvalidArgument, with the name: missing, or of another shape (not compared when empty).
  absl::StatusOr<ForeignTensor> Read(const std::string& name,
                                     const std::vector<int64_t>& shape = {}) const;
  // As fp32, from any number type. InvalidArgument too if there are not `elements` of them, or one
  // is not finite.
  absl::StatusOr<std::vector<float>> ReadFloats(const std::string& name, int64_t elements) const;

 private:
  absl::Status AddTorch(const std::string& path);
  absl::Status AddTorchShards(const std::string& directory, const std::string& index_path);

  std::optional<worker::checkpoint::TensorSet> safetensors_;
  std::vector<worker::checkpoint::TorchFile> files_;
  std::map<std::string, size_t, std::less<>> places_;  // tensor -> file of torch.save
};

}  // namespace qserve::quantizer
