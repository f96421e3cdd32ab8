// Writes tensors in a stream into the safetensors files of a checkpoint: one file, or shards with
// their index. The list of tensors is declared first (headers come before data), then each tensor's
// bytes are appended in that order; memory stays bounded by the pieces. Used by the quantizer and
// the makers of random models; one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::worker::checkpoint {

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  int64_t bytes() const;
};

// What Hugging Face tools write by default is 5 GB; a little less, so that a shard fits where files
// end at 4 GiB.
inline constexpr int64_t kDefaultShardBytes = int64_t{4'000'000'000};

class SafetensorsWriter {
 public:
  // Files go into `directory`, which must outlive the writer: model.safetensors if everything fits
  // into `max_shard_bytes`, else model-00001-of-0000N.safetensors with
  // model.safetensors.index.json. A single tensor larger than that has a shard of its own.
  SafetensorsWriter(OutputDirectory& directory, std::vector<TensorInfo> tensors,
                    int64_t max_shard_bytes = kDefaultShardBytes);

  // The next bytes of the tensor `name`, which must be the first unfinished one.
  absl::Status Append(const std::string& name, std::span<const std::byte> bytes);

  template <class T>
  absl::Status AppendSpan(const std::string& name, std::span<const T> values) {
    return Append(name, std::as_bytes(values));
  }

  // Every declared tensor must be complete. Writes the index.
  absl::Status Finish();

 private:
  struct Shard {
    std::string file_name;
    size_t first = 0;  // tensors [first, last)
    size_t last = 0;
  };
  absl::Status OpenShard();
  absl::Status EndTensors();

  OutputDirectory& directory_;
  std::vector<TensorInfo> tensors_;
  std::vector<Shard> shards_;
  std::optional<OutputFile> file_;
  size_t shard_ = 0;
  size_t tensor_ = 0;    // the first unfinished one
  int64_t written_ = 0;  // bytes of it
};

}  // namespace qserve::worker::checkpoint
