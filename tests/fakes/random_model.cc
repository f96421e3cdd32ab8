// See random_model.h.
#include "tests/fakes/random_model.h"

#include <memory>
#include <span>
#include <vector>

#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/random_weights.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qserve::fakes {
namespace {

namespace ckpt = worker::checkpoint;

absl::Status WriteTensor(ckpt::SafetensorsWriter& writer, const std::string& name,
                         ckpt::Dtype dtype, std::span<const float> values) {
  if (dtype == ckpt::Dtype::kF32) return writer.AppendSpan(name, values);
  std::vector<uint16_t> narrow;
  narrow.reserve(values.size());
  for (const float value : values) {
    narrow.push_back(dtype == ckpt::Dtype::kF16 ? kernels::FloatToHalf(value)
                                                : kernels::FloatToBf16(value));
  }
  return writer.AppendSpan(name, std::span<const uint16_t>(narrow));
}

}  // namespace

absl::Status WriteRandomModel(const std::string& directory, const std::string& config_json,
                              const RandomModelOptions& options) {
  ASSIGN_OR_RETURN(const ckpt::ModelConfig config,
                   ckpt::ParseModelConfig(config_json, options.generation_config_json));
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> output,
                   ckpt::OutputDirectory::Create(directory));
  const std::vector<ckpt::TensorSpec> specs = ckpt::FloatTensors(config);
  std::vector<ckpt::TensorInfo> tensors;
  for (const ckpt::TensorSpec& spec : specs)
    tensors.push_back({spec.name, options.dtype, spec.shape});
  ckpt::SafetensorsWriter writer(*output, tensors, options.max_shard_bytes);
  for (size_t i = 0; i < specs.size(); ++i) {
    std::vector<float> values(
        static_cast<size_t>(tensors[i].bytes() / ckpt::DtypeBytes(options.dtype)));
    ckpt::FillRandom(specs[i].name, options.seed, ckpt::RangeOf(specs[i]), 0, values);
    RETURN_IF_ERROR(WriteTensor(writer, specs[i].name, options.dtype, values));
  }
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(output->WriteFile("config.json", config_json));
  if (!options.generation_config_json.empty()) {
    RETURN_IF_ERROR(output->WriteFile("generation_config.json", options.generation_config_json));
  }
  return output->Commit();
}

}  // namespace qserve::fakes
