// See pipeline.h. One linear at a time: threads fold, round and collect rows in pieces, then the
// whole is packed and appended.
#include "quantizer/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "common/log.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "kernels/quant/qserve_pack.h"
#include "quantizer/export.h"
#include "quantizer/progress.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/generation_config.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

constexpr int64_t kPieceRows = 64;  // a thread's fp32 copy of a linear
constexpr int64_t kEmbeddingRows = 1024;

absl::Status CheckSizes(const ckpt::ModelConfig& config, ckpt::Scheme scheme) {
  const int64_t columns = ColumnMultiple(scheme);
  for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config, 0)) {
    if (linear.n % kRowMultiple != 0 || linear.k % columns != 0) {
      return absl::InvalidArgumentError(
          fmt::format("{} is {} x {}, but this recipe needs multiples of {} rows and {} columns",
                      linear.name, linear.n, linear.k, kRowMultiple, columns));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSpace(const ckpt::OutputDirectory& output,
                        const std::vector<ckpt::TensorInfo>& tensors) {
  int64_t needed = 0;
  for (const ckpt::TensorInfo& tensor : tensors) needed += tensor.bytes();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(output.temporary_path(), error);
  if (error || space.available >= static_cast<uintmax_t>(needed)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("the result needs {} MB, but only {} MB are free there", needed / 1'000'000,
                  space.available / 1'000'000));
}

absl::Status ToHalves(const std::string& name, std::span<const float> values,
                      std::vector<uint16_t>& halves) {
  halves.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    halves[i] = kernels::FloatToHalf(values[i]);
    if (!std::isfinite(kernels::HalfToFloat(halves[i]))) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {}: element {} ({}) is not finite in fp16", name, i, values[i]));
    }
  }
  return absl::OkStatus();
}

// The first error of several threads.
class FirstError {
 public:
  void Set(absl::Status status) {
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = std::move(status);
    failed_ = true;
  }
  bool failed() const { return failed_; }
  absl::Status Take() { return std::move(status_); }

 private:
  std::mutex mutex_;
  absl::Status status_;
  std::atomic<bool> failed_ = false;
};

class Pipeline {
 public:
  Pipeline(const QuantizeOptions& options, const ckpt::Checkpoint& source,
           ckpt::SafetensorsWriter& writer)
      : options_(options), source_(source), writer_(writer) {}

  absl::Status Run();

 private:
  absl::Status CheckInterrupt() const {
    if (options_.interrupted == nullptr || !*options_.interrupted) return absl::OkStatus();
    return absl::CancelledError("interrupted, nothing was written");
  }
  absl::Status WriteMatrix(const std::string& source_name, const std::string& name,
                           const std::vector<float>* gain);
  absl::Status WriteVector(const std::string& name, std::span<const float> values);
  absl::Status WriteLayer(int64_t layer);
  absl::StatusOr<kernels::LinearWeight> QuantizePiece(const ckpt::LinearSpec& linear,
                                                      ckpt::Range rows,
                                                      const std::vector<float>& gain) const;
  absl::StatusOr<kernels::LinearWeight> QuantizeLinear(const ckpt::LinearSpec& linear,
                                                       const std::vector<float>& gain) const;

  const QuantizeOptions& options_;
  const ckpt::Checkpoint& source_;
  ckpt::SafetensorsWriter& writer_;
};

absl::Status Pipeline::Run() {
  const ckpt::ModelConfig& config = source_.config();
  Progress progress("quantized layers:", config.layers, options_.terminal);
  RETURN_IF_ERROR(WriteMatrix(ckpt::kEmbeddingTensor, ckpt::kEmbeddingTensor, nullptr));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    RETURN_IF_ERROR(WriteLayer(layer));
    progress.Step(layer + 1);
  }
  ASSIGN_OR_RETURN(const std::vector<float> gain,
                   source_.ReadVector(ckpt::kFinalNormTensor, config.hidden_size));
  RETURN_IF_ERROR(WriteVector(ckpt::kFinalNormTensor, std::vector<float>(gain.size(), 1.0f)));
  return WriteMatrix(config.tie_word_embeddings ? ckpt::kEmbeddingTensor : ckpt::kHeadTensor,
                     ckpt::kHeadTensor, &gain);
}

// Embedding or lm_head in fp16, its columns multiplied by `gain` if there is one.
absl::Status Pipeline::WriteMatrix(const std::string& source_name, const std::string& name,
                                   const std::vector<float>* gain) {
  const int64_t cols = source_.config().hidden_size, rows = source_.config().vocab_size;
  std::vector<float> values;
  std::vector<uint16_t> halves;
  for (int64_t begin = 0; begin < rows; begin += kEmbeddingRows) {
    RETURN_IF_ERROR(CheckInterrupt());
    const int64_t count = std::min(kEmbeddingRows, rows - begin);
    ASSIGN_OR_RETURN(ckpt::FloatMatrix matrix,
                     source_.ReadRows(source_name, {begin, begin + count}, cols));
    kernels::LinearWeight weight;
    weight.float_type = matrix.type;
    weight.n = count;
    weight.k = cols;
    weight.floats = std::move(matrix.data);
    values.resize(static_cast<size_t>(count * cols));
    for (int64_t row = 0; row < count; ++row) {
      float* out = values.data() + row * cols;
      kernels::DequantizeRow(weight, row, out);
      for (int64_t k = 0; gain != nullptr && k < cols; ++k)
        out[k] *= (*gain)[static_cast<size_t>(k)];
    }
    RETURN_IF_ERROR(ToHalves(name, values, halves));
    RETURN_IF_ERROR(writer_.AppendSpan(name, std::span<const uint16_t>(halves)));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::WriteVector(const std::string& name, std::span<const float> values) {
  std::vector<uint16_t> halves;
  RETURN_IF_ERROR(ToHalves(name, values, halves));
  return writer_.AppendSpan(name, std::span<const uint16_t>(halves));
}

absl::Status Pipeline::WriteLayer(int64_t layer) {
  const ckpt::ModelConfig& config = source_.config();
  const std::string block = fmt::format("model.layers.{}.", layer);
  const std::vector<float> ones(static_cast<size_t>(config.hidden_size), 1.0f);
  RETURN_IF_ERROR(WriteVector(block + "input_layernorm.weight", ones));
  RETURN_IF_ERROR(WriteVector(block + "post_attention_layernorm.weight", ones));
  for (const char* name : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
    if (!config.qk_norm)
      break;  // these stand between the linear and the rotation and cannot be folded
    ASSIGN_OR_RETURN(const std::vector<float> gain,
                     source_.ReadVector(block + name, config.head_dim));
    RETURN_IF_ERROR(WriteVector(block + name, gain));
  }
  for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config, layer)) {
    std::vector<float> gain;
    if (!linear.norm.empty()) {
      ASSIGN_OR_RETURN(gain, source_.ReadVector(linear.norm, config.hidden_size));
    }
    ASSIGN_OR_RETURN(const kernels::LinearWeight weight, QuantizeLinear(linear, gain));
    const kernels::StatusOr<kernels::QServeTensors> packed = kernels::PackQServe(weight);
    if (!packed.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: {}", linear.name, packed.status().message()));
    }
    RETURN_IF_ERROR(WriteLinear(writer_, linear.name, *packed));
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::LinearWeight> Pipeline::QuantizePiece(
    const ckpt::LinearSpec& linear, ckpt::Range rows, const std::vector<float>& gain) const {
  RETURN_IF_ERROR(CheckInterrupt());
  ASSIGN_OR_RETURN(
      const kernels::LinearWeight source,
      source_.ReadLinear(linear.name, rows, {0, linear.k}, ckpt::LoadQuantization::kNone));
  std::vector<float> values(static_cast<size_t>(rows.size() * linear.k));
  for (int64_t row = 0; row < rows.size(); ++row) {
    float* out = values.data() + row * linear.k;
    kernels::DequantizeRow(source, row, out);
    for (size_t k = 0; k < gain.size(); ++k) out[k] *= gain[k];
  }
  kernels::StatusOr<kernels::LinearWeight> piece =
      options_.recipe->quantize_rows(values.data(), rows.size(), linear.k);
  if (!piece.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}, rows from {} on: {}", linear.name, rows.begin, piece.status().message()));
  }
  for (const float bias : source.bias) piece->bias.push_back(kernels::RoundToHalf(bias));
  return *std::move(piece);
}

absl::StatusOr<kernels::LinearWeight> Pipeline::QuantizeLinear(
    const ckpt::LinearSpec& linear, const std::vector<float>& gain) const {
  const auto pieces = static_cast<size_t>((linear.n + kPieceRows - 1) / kPieceRows);
  std::vector<kernels::LinearWeight> results(pieces);
  std::atomic<size_t> next = 0;
  FirstError error;
  const auto work = [&] {
    for (size_t i = next++; i < pieces && !error.failed(); i = next++) {
      const int64_t begin = static_cast<int64_t>(i) * kPieceRows;
      absl::StatusOr<kernels::LinearWeight> piece =
          QuantizePiece(linear, {begin, std::min(begin + kPieceRows, linear.n)}, gain);
      if (!piece.ok()) return error.Set(piece.status());
      results[i] = *std::move(piece);
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int i = 1; i < std::min<int>(options_.threads, static_cast<int>(pieces)); ++i)
      threads.emplace_back(work);
    work();
  }
  if (error.failed()) return error.Take();
  std::vector<const kernels::LinearWeight*> parts;
  for (const kernels::LinearWeight& part : results) parts.push_back(&part);
  kernels::StatusOr<kernels::LinearWeight> whole = kernels::ConcatenateRows(parts);
  if (!whole.ok())
    return absl::InvalidArgumentError(fmt::format("{}: {}", linear.name, whole.status().message()));
  return *std::move(whole);
}

}  // namespace

absl::Status QuantizeModel(const QuantizeOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::Checkpoint> source,
                   ckpt::Checkpoint::Open(options.model));
  const ckpt::Scheme scheme = options.recipe->scheme;
  if (source->config().scheme != ckpt::Scheme::kFloat) {
    return absl::InvalidArgumentError(fmt::format("{} is quantized already", options.model));
  }
  RETURN_IF_ERROR(CheckSizes(source->config(), scheme));
  ASSIGN_OR_RETURN(const std::string source_json,
                   ReadSmallFile(options.model + "/config.json", ckpt::kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string config_json, QoqConfigJson(source_json, scheme));
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> output,
                   ckpt::OutputDirectory::Create(options.output));
  const std::vector<ckpt::TensorInfo> tensors = QoqTensors(source->config(), scheme);
  RETURN_IF_ERROR(CheckSpace(*output, tensors));
  ckpt::SafetensorsWriter writer(*output, tensors, options.max_shard_bytes);
  RETURN_IF_ERROR(Pipeline(options, *source, writer).Run());
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(output->WriteFile("config.json", config_json));
  RETURN_IF_ERROR(CopyModelFiles(options.model, *output));
  return output->Commit();
}

}  // namespace qserve::quantizer
