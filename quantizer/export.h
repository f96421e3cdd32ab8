// What stands in a QoQ checkpoint besides the quantized numbers: the list of its tensors, its
// config.json, the files that are copied. Called by pipeline.cc.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/quant/qserve_pack.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qserve::quantizer {

// Every tensor in the order in which it is written: embedding; per block the norms, then the
// tensors of each linear; final norm; lm_head. `config` is that of the source, `scheme` the
// target's.
std::vector<worker::checkpoint::TensorInfo> QoqTensors(
    const worker::checkpoint::ModelConfig& config, worker::checkpoint::Scheme scheme);

// Only those of one block.
std::vector<worker::checkpoint::TensorInfo> BlockTensors(
    const worker::checkpoint::ModelConfig& config, worker::checkpoint::Scheme scheme,
    int64_t layer);

// The tensors of one linear, in the order of QoqTensors.
absl::Status WriteLinear(worker::checkpoint::SafetensorsWriter& writer, const std::string& name,
                         const kernels::QServeTensors& tensors);

// The source's config.json, its members in their order, with quantization_config, untied embeddings
// and fp16. lm_head_bits 0: not recorded.
absl::StatusOr<std::string> QoqConfigJson(const std::string& source_json,
                                          worker::checkpoint::Scheme scheme, int kv_bits,
                                          int lm_head_bits);

// Tokenizer, chat template and generation_config.json, where the model has them.
absl::Status CopyModelFiles(const std::string& model, worker::checkpoint::OutputDirectory& output);

}  // namespace qserve::quantizer
