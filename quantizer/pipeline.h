// From a floating-point model directory to a QoQ checkpoint, layer by layer from the mapped files:
// memory is bounded by the largest linear. Called by main.cc and tests; blocks, uses `threads`
// threads of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device_factory.h"
#include "quantizer/settings.h"

namespace qserve::quantizer {

struct QuantizeOptions {
  std::string model;   // directory
  std::string output;  // directory, absent or empty
  Settings settings;
  std::vector<int32_t> calibration;  // token ids of the calibration text; none where not needed
  std::string device = "cpu";        // that runs calibration: auto | cpu | cuda
  int threads = 1;
  bool terminal = false;                           // show progress on one line of standard error
  const std::atomic<bool>* interrupted = nullptr;  // may be null; set: stop soon with Cancelled
  // Called behind every block with its number; false: stop with Cancelled. May be empty.
  std::function<bool(int64_t layer)> layer_done;
  int64_t max_shard_bytes = int64_t{4'000'000'000};  // of tensor data per file
  // Tests have an emulated GPU made instead.
  std::function<kernels::StatusOr<std::unique_ptr<kernels::Backend>>(const kernels::DeviceOptions&)>
      create_backend = kernels::CreateBackend;
};

// The output appears only when complete. Errors: those of Checkpoint::Open; AlreadyExists (output);
// InvalidArgument for a model that is quantized already, sizes that the scheme cannot store,
// weights that are not finite or beyond fp16; ResourceExhausted (disk); those of CreateBackend.
//
// What is written (docs/CHECKPOINTS.md): block norm gains folded into the linears that read them
// and written as 1, the final gain folded into lm_head, embeddings untied, everything that is not a
// quantized linear in fp16, and quantization_config in config.json.
absl::Status QuantizeModel(const QuantizeOptions& options);

}  // namespace qserve::quantizer
