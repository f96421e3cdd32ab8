// Reads a model directory: safetensors files with their index, mapped and validated; tensors are
// handed out as slices, and only the bytes of a slice are touched (counted, so that a test can hold
// a tensor-parallel rank to its share). Of the mapped pages only the latest few megabytes stay with
// this process; the others are the page cache's alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/stored_rows.h"

namespace qserve::worker::checkpoint {

// Half-open range of rows or columns.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// What --quantize asks for a full-precision directory at load.
enum class LoadQuantization { kNone, kRtnGroup128, kRtnPerChannel };

// A floating-point matrix (embedding rows) as raw little-endian values.
struct FloatMatrix {
  kernels::FloatType type = kernels::FloatType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint8_t> data;
};

// Thread-safe for reading: const methods may be called from several threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // NotFound (no such directory, missing shard), InvalidArgument (anything malformed: which file,
  // which tensor, why).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  virtual const ModelConfig& config() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;

  // Weight (and bias where the tensor `name`.bias exists) of the linear `name`, for example
  // "model.layers.0.self_attn.q_proj": rows [rows.begin, rows.end), columns likewise, each a
  // multiple of 32 in a QoQ checkpoint. A QoQ linear comes as kW4PerChannel or kW4Group128 with
  // lead = columns.begin % 128; a floating-point one as kFloat, or quantized by `quantization`
  // exactly as the whole matrix would be (a row-parallel slice gets the scales of the whole row:
  // the scales' reading counts as touched bytes). The bias is only given when columns.begin is 0:
  // with a row-parallel cut rank 0 adds it.
  virtual absl::StatusOr<kernels::LinearWeight> ReadLinear(const std::string& name, Range rows,
                                                           Range columns,
                                                           LoadQuantization quantization) const = 0;

  // A 1-d tensor as fp32 (norm gains).
  virtual absl::StatusOr<std::vector<float>> ReadVector(const std::string& name,
                                                        int64_t size) const = 0;

  // Rows of a 2-d floating-point tensor of `cols` columns (embeddings, lm_head).
  virtual absl::StatusOr<FloatMatrix> ReadRows(const std::string& name, Range rows,
                                               int64_t cols) const = 0;

  // The same rows left where they are, to be read one at a time: independent of this object and not
  // counted as touched. The file must stay as it is for as long. Beside the errors of ReadRows,
  // FailedPrecondition where the file was replaced since the directory was opened.
  virtual absl::StatusOr<StoredRows> OpenRows(const std::string& name, Range rows,
                                              int64_t cols) const = 0;

  virtual bool Has(const std::string& tensor_name) const = 0;

  // 64-bit digest of config.json and of the safetensors headers, sizes and a sample of their bytes:
  // part of numerics_id.
  virtual uint64_t digest() const = 0;

  // Bytes of tensor data touched so far.
  virtual int64_t bytes_read() const = 0;
};

}  // namespace qserve::worker::checkpoint
