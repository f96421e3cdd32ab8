// See pipeline.h. A block at a time: read, rounded by LayerQuantizer, packed and appended.
#include "quantizer/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "common/hashing.h"
#include "common/log.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "kernels/quant/qserve_pack.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/export.h"
#include "quantizer/knobs.h"
#include "quantizer/layer_quantizer.h"
#include "quantizer/layer_store.h"
#include "quantizer/progress.h"
#include "quantizer/recipe.h"
#include "quantizer/transform/hadamard.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

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

class Pipeline {
 public:
  Pipeline(const QuantizeOptions& options, const Settings& settings, const ckpt::Checkpoint& source,
           ckpt::SafetensorsWriter& writer)
      : options_(options), settings_(settings), source_(source), writer_(writer) {}

  absl::Status Run();
  // The result is in place: what was kept for another attempt goes.
  void Forget();

 private:
  absl::Status CheckInterrupt() const {
    if (options_.interrupted == nullptr || !*options_.interrupted) return absl::OkStatus();
    return absl::CancelledError("interrupted, no model was written");
  }
  absl::Status Prepare();
  absl::Status EmbedWindows();
  absl::Status WriteEmbedding();
  absl::Status WriteHead();
  absl::Status WriteMatrix(const std::string& name, const MatrixF& rows);
  static absl::Status WriteVector(ckpt::SafetensorsWriter& writer, const std::string& name,
                                  const VectorF& values);
  absl::Status WriteLayer(ckpt::SafetensorsWriter& writer, int64_t layer,
                          const RoundedBlock& block) const;
  absl::Status WriteBlocks();
  uint64_t Digest() const;
  absl::StatusOr<MatrixF> EmbeddingRows(ckpt::Range rows) const;

  const QuantizeOptions& options_;
  const Settings& settings_;
  const ckpt::Checkpoint& source_;
  ckpt::SafetensorsWriter& writer_;
  std::optional<transform::Hadamard> rotation_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<calibration::BlockRunner> runner_;
  Streams streams_;
  std::optional<LayerStore> store_;  // with calibration only
};

absl::Status Pipeline::Run() {
  RETURN_IF_ERROR(Prepare());
  absl::Status status = WriteEmbedding();
  if (status.ok()) status = WriteBlocks();
  if (status.ok())
    status =
        WriteVector(writer_, ckpt::kFinalNormTensor, VectorF::Ones(source_.config().hidden_size));
  if (status.ok()) status = WriteHead();
  // What cannot succeed another time either is not kept, nor is nothing.
  const bool resumable = !absl::IsInvalidArgument(status) && store_ && store_->finished() > 0;
  if (store_ && !status.ok() && !resumable) store_->Remove();
  if (status.ok() || !resumable) return status;
  const std::string problem =
      absl::IsCancelled(status) ? "interrupted" : std::string(status.message());
  return absl::Status(status.code(),
                      fmt::format("{}; the same command goes on behind the last block", problem));
}

absl::Status Pipeline::WriteBlocks() {
  const ckpt::ModelConfig& config = source_.config();
  const int64_t done = store_ ? store_->finished() : 0;
  if (done > 0) {
    LOG_INFO("going on behind block {} of {}", done, config.layers);
    RETURN_IF_ERROR(store_->LoadStreams(streams_));
  }
  LayerQuantizer quantizer(settings_, runner_.get(), rotation_ ? &*rotation_ : nullptr,
                           [this] { return CheckInterrupt(); });
  Progress progress("quantized layers:", config.layers - done, options_.terminal);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto tensors = BlockTensors(config, settings_.solve.scheme, layer);
    if (layer >= done) {
      RETURN_IF_ERROR(CheckInterrupt());
      ASSIGN_OR_RETURN(BlockWeights block, ReadBlock(source_, layer, options_.threads));
      ASSIGN_OR_RETURN(const RoundedBlock rounded, quantizer.Quantize(std::move(block), streams_));
      const auto write = [&](ckpt::SafetensorsWriter& writer) {
        return WriteLayer(writer, layer, rounded);
      };
      RETURN_IF_ERROR(store_ ? store_->Save(tensors, streams_, write) : write(writer_));
      progress.Step(layer + 1 - done);
      if (options_.layer_done && !options_.layer_done(layer))
        return absl::CancelledError("stopped");
    }
    if (store_) RETURN_IF_ERROR(store_->CopyLayer(layer, tensors, writer_));
  }
  return absl::OkStatus();
}

void Pipeline::Forget() {
  if (store_) store_->Remove();
}

// Of everything that a block's bytes depend on.
uint64_t Pipeline::Digest() const {
  const std::string text =
      fmt::format("{}kernels={}\nthreads={}\nmodel={:x}\ntext={:x}\n", Describe(settings_),
                  backend_->info().kernel_family, options_.threads, source_.digest(),
                  HashSpan(std::span(options_.calibration)));
  return HashSpan(std::span(text));
}

// What calibration needs: a device and the embedded windows.
absl::Status Pipeline::Prepare() {
  const ckpt::ModelConfig& config = source_.config();
  if (settings_.transform.rotate) {
    ASSIGN_OR_RETURN(rotation_, transform::Hadamard::Create(config.hidden_size,
                                                            settings_.transform.rotation_seed));
  }
  if (!NeedsCalibration(settings_)) return absl::OkStatus();
  if (options_.calibration.empty()) {
    return absl::InvalidArgumentError(
        "this recipe needs a calibration text: give --calibration FILE");
  }
  ASSIGN_OR_RETURN(backend_, worker::model::ToAbsl(options_.create_backend(
                                 {.device = options_.device, .threads = options_.threads})));
  const int64_t length = std::min(settings_.windows.length, config.max_position_embeddings);
  ASSIGN_OR_RETURN(runner_, calibration::BlockRunner::Create(config, *backend_, length));
  RETURN_IF_ERROR(EmbedWindows());
  ASSIGN_OR_RETURN(store_, LayerStore::Open(options_.output, Digest()));
  return absl::OkStatus();
}

absl::Status Pipeline::EmbedWindows() {
  const ckpt::ModelConfig& config = source_.config();
  calibration::WindowOptions options = settings_.windows;
  options.length = std::min(options.length, config.max_position_embeddings);
  ASSIGN_OR_RETURN(const auto windows, calibration::ChooseWindows(options_.calibration, options));
  for (const std::vector<int32_t>& window : windows) {
    MatrixF exact(std::ssize(window), config.hidden_size);
    for (int64_t t = 0; t < exact.rows(); ++t) {
      const int64_t id = window[static_cast<size_t>(t)];
      if (id < 0 || id >= config.vocab_size) {
        return absl::InvalidArgumentError(
            fmt::format("token {} of the calibration text is not in the model's vocabulary", id));
      }
      ASSIGN_OR_RETURN(const MatrixF row, EmbeddingRows({id, id + 1}));
      exact.row(t) = row;
    }
    streams_.rounded.push_back(exact.unaryExpr([](float x) { return kernels::RoundToHalf(x); }));
    streams_.exact.push_back(std::move(exact));
  }
  LOG_INFO("calibrating on {} windows of {} tokens", windows.size(), options.length);
  return absl::OkStatus();
}

absl::StatusOr<MatrixF> Pipeline::EmbeddingRows(ckpt::Range rows) const {
  ASSIGN_OR_RETURN(MatrixF matrix, ReadMatrixRows(source_, ckpt::kEmbeddingTensor, rows,
                                                  source_.config().hidden_size));
  if (rotation_) rotation_->ApplyToRows(matrix, rows.size() > 1 ? options_.threads : 1);
  return matrix;
}

absl::Status Pipeline::WriteEmbedding() {
  const int64_t vocabulary = source_.config().vocab_size;
  for (int64_t begin = 0; begin < vocabulary; begin += kEmbeddingRows) {
    RETURN_IF_ERROR(CheckInterrupt());
    ASSIGN_OR_RETURN(const MatrixF rows,
                     EmbeddingRows({begin, std::min(begin + kEmbeddingRows, vocabulary)}));
    RETURN_IF_ERROR(WriteMatrix(ckpt::kEmbeddingTensor, rows));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::WriteHead() {
  const ckpt::ModelConfig& config = source_.config();
  ASSIGN_OR_RETURN(const std::vector<float> gain,
                   source_.ReadVector(ckpt::kFinalNormTensor, config.hidden_size));
  const Eigen::Map<const VectorF> gains(gain.data(), config.hidden_size);
  const char* const name = config.tie_word_embeddings ? ckpt::kEmbeddingTensor : ckpt::kHeadTensor;
  for (int64_t begin = 0; begin < config.vocab_size; begin += kEmbeddingRows) {
    RETURN_IF_ERROR(CheckInterrupt());
    ASSIGN_OR_RETURN(
        MatrixF rows,
        ReadMatrixRows(source_, name, {begin, std::min(begin + kEmbeddingRows, config.vocab_size)},
                       config.hidden_size));
    rows *= gains.asDiagonal();
    if (rotation_) rotation_->ApplyToRows(rows, options_.threads);
    RETURN_IF_ERROR(WriteMatrix(ckpt::kHeadTensor, rows));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::WriteMatrix(const std::string& name, const MatrixF& rows) {
  std::vector<uint16_t> halves;
  RETURN_IF_ERROR(ToHalves(name, std::span(rows.data(), static_cast<size_t>(rows.size())), halves));
  return writer_.AppendSpan(name, std::span<const uint16_t>(halves));
}

absl::Status Pipeline::WriteVector(ckpt::SafetensorsWriter& writer, const std::string& name,
                                   const VectorF& values) {
  std::vector<uint16_t> halves;
  RETURN_IF_ERROR(
      ToHalves(name, std::span(values.data(), static_cast<size_t>(values.size())), halves));
  return writer.AppendSpan(name, std::span<const uint16_t>(halves));
}

absl::Status Pipeline::WriteLayer(ckpt::SafetensorsWriter& writer, int64_t layer,
                                  const RoundedBlock& block) const {
  const std::string name = fmt::format("model.layers.{}.", layer);
  const VectorF ones = VectorF::Ones(source_.config().hidden_size);
  RETURN_IF_ERROR(WriteVector(writer, name + "input_layernorm.weight", ones));
  RETURN_IF_ERROR(WriteVector(writer, name + "post_attention_layernorm.weight", ones));
  if (block.q_gain.size() != 0) {
    RETURN_IF_ERROR(WriteVector(writer, name + "self_attn.q_norm.weight", block.q_gain));
    RETURN_IF_ERROR(WriteVector(writer, name + "self_attn.k_norm.weight", block.k_gain));
  }
  const std::vector<ckpt::LinearSpec> linears = ckpt::LayerLinears(source_.config(), layer);
  for (size_t i = 0; i < linears.size(); ++i) {
    const kernels::StatusOr<kernels::QServeTensors> packed = kernels::PackQServe(block.linears[i]);
    if (!packed.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: {}", linears[i].name, packed.status().message()));
    }
    RETURN_IF_ERROR(WriteLinear(writer, linears[i].name, *packed));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QuantizeModel(const QuantizeOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::Checkpoint> source,
                   ckpt::Checkpoint::Open(options.model));
  Settings settings = options.settings;
  settings.solve.threads = options.threads;
  const ckpt::Scheme scheme = settings.solve.scheme;
  if (source->config().scheme != ckpt::Scheme::kFloat) {
    return absl::InvalidArgumentError(fmt::format("{} is quantized already", options.model));
  }
  RETURN_IF_ERROR(CheckSizes(source->config(), scheme));
  ASSIGN_OR_RETURN(const std::string source_json,
                   ReadSmallFile(options.model + "/config.json", ckpt::kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string config_json,
                   QoqConfigJson(source_json, scheme, settings.kv_bits, settings.lm_head_bits));
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> output,
                   ckpt::OutputDirectory::Create(options.output));
  const std::vector<ckpt::TensorInfo> tensors = QoqTensors(source->config(), scheme);
  RETURN_IF_ERROR(CheckSpace(*output, tensors));
  ckpt::SafetensorsWriter writer(*output, tensors, options.max_shard_bytes);
  Pipeline pipeline(options, settings, *source, writer);
  RETURN_IF_ERROR(pipeline.Run());
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(output->WriteFile("config.json", config_json));
  RETURN_IF_ERROR(CopyModelFiles(options.model, *output));
  RETURN_IF_ERROR(output->Commit());
  pipeline.Forget();
  return absl::OkStatus();
}

}  // namespace qserve::quantizer
