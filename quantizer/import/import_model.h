// From a quantized checkpoint of another program to a QoQ directory of ours, without rounding
// anything again. Called by import_command.cc and tests; blocks, one thread, holds one linear at a
// time.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantizer/import/linear_source.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qserve::quantizer {

enum class ImportFormat { kAuto, kQserve, kDeepCompressor, kCompressedTensors };

// What to do where the norms of a checkpoint in QServe's layout have gains: its own loader takes
// them for 1 whatever the file says.
enum class NormGains { kRefuse, kOnes, kKeep };

struct ImportOptions {
  std::string model;   // directory
  std::string output;  // directory, absent or empty
  std::string base;    // where config.json and the tokenizer are; empty: in `model`
  std::string scales;  // DeepCompressor's scale.pt; empty: in `model`
  ImportFormat format = ImportFormat::kAuto;
  ColumnOrder column_order = ColumnOrder::kAuto;
  NormGains norm_gains = NormGains::kRefuse;
  int64_t max_shard_bytes = worker::checkpoint::kDefaultShardBytes;
  bool terminal = false;                           // progress on one line of standard error
  const std::atomic<bool>* interrupted = nullptr;  // may be null; set: stop soon with Cancelled
};

// Names of the flags' values; InvalidArgument names the legal ones.
absl::StatusOr<ImportFormat> ParseImportFormat(std::string_view text);
absl::StatusOr<ColumnOrder> ParseColumnOrder(std::string_view text);
absl::StatusOr<NormGains> ParseNormGains(std::string_view text);

// The output appears only when complete. Errors: NotFound (files), InvalidArgument (anything
// malformed, or without an exact QoQ form: which tensor, why), AlreadyExists (output),
// ResourceExhausted (disk), Cancelled.
absl::Status ImportModel(const ImportOptions& options);

}  // namespace qserve::quantizer
