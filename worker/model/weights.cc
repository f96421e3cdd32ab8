#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "kernels/quant/rtn.h"
#include "worker/model/device_status.h"
#include "worker/model/read_ahead.h"

namespace qserve::worker::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::FloatMatrix;
using checkpoint::LoadQuantization;
using checkpoint::ModelConfig;
using kernels::FloatType;
using kernels::LinearWeight;
using kernels::PackedLinear;
using kernels::WeightFormat;

// Rows of a vocabulary matrix handled at once: bounds what the host holds in fp32 while the head is
// quantized.
constexpr int64_t kVocabChunkRows = 4096;

int64_t FloatBytes(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

float FloatAt(FloatType type, const uint8_t* data, int64_t index) {
  if (type == FloatType::kF32) {
    float value = 0;
    std::memcpy(&value, data + 4 * index, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, data + 2 * index, sizeof(bits));
  return type == FloatType::kF16 ? kernels::HalfToFloat(bits) : kernels::Bf16ToFloat(bits);
}

std::vector<float> ToFloats(const FloatMatrix& matrix) {
  std::vector<float> floats(static_cast<size_t>(matrix.rows * matrix.cols));
  kernels::WidenFloats(matrix.type, matrix.data.data(), std::ssize(floats), floats.data());
  return floats;
}

// As fp16 bytes, rounded to nearest even where the checkpoint has another type. A value beyond fp16
// would be served as infinity.
absl::Status RoundToHalf(FloatMatrix& matrix) {
  if (matrix.type == FloatType::kF16) return absl::OkStatus();
  std::vector<uint8_t> halves(static_cast<size_t>(2 * matrix.rows * matrix.cols));
  for (int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
    const uint16_t half = kernels::FloatToHalf(FloatAt(matrix.type, matrix.data.data(), i));
    if ((half & 0x7c00u) == 0x7c00u) {
      return absl::InvalidArgumentError(
          fmt::format("lm_head row {}, column {} does not fit fp16; serve it as int8",
                      i / matrix.cols, i % matrix.cols));
    }
    std::memcpy(halves.data() + 2 * i, &half, sizeof(half));
  }
  matrix.type = FloatType::kF16;
  matrix.data = std::move(halves);
  return absl::OkStatus();
}

// The first error of pieces that are read on a backend's threads, which know no absl::Status.
class PieceError {
 public:
  kernels::StatusOr<LinearWeight> Take(absl::StatusOr<LinearWeight> piece) {
    if (piece.ok()) return *std::move(piece);
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = piece.status();
    return kernels::InvalidArgument(std::string(piece.status().message()));
  }
  const absl::Status& status() const { return status_; }

 private:
  std::mutex mutex_;
  absl::Status status_;
};

// Loads one model; lives on the stack of LoadWeights.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const Shard& shard, kernels::Backend& backend,
         const WeightOptions& options)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        shard_(shard),
        backend_(backend),
        options_(options) {}

  absl::StatusOr<ModelWeights> Load() {
    weights_.layers.resize(static_cast<size_t>(config_.layers));
    RETURN_IF_ERROR(LoadEmbedding());
    for (int64_t layer = 0; layer < config_.layers; ++layer) RETURN_IF_ERROR(LoadGains(layer));
    RETURN_IF_ERROR(LoadLinears());
    ASSIGN_OR_RETURN(weights_.final_gain, LoadVector("model.norm.weight", config_.hidden_size));
    RETURN_IF_ERROR(LoadHead());
    return std::move(weights_);
  }

 private:
  static constexpr int64_t kLinearsPerLayer = 4;

  std::string LayerName(int64_t layer, const char* part) const {
    return fmt::format("model.layers.{}.{}", layer, part);
  }

  absl::StatusOr<kernels::Buffer> Allocate(int64_t bytes) {
    weights_.device_bytes += bytes;
    return ToAbsl(backend_.Allocate(bytes, "weights"));
  }

  absl::StatusOr<kernels::Buffer> LoadVector(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(const std::vector<float> values, checkpoint_.ReadVector(name, size));
    ASSIGN_OR_RETURN(kernels::Buffer buffer, Allocate(size * int64_t{sizeof(float)}));
    backend_.CopyToDevice(buffer.data(), values.data(), size * int64_t{sizeof(float)});
    return buffer;
  }

  absl::Status LoadGains(int64_t layer) {
    LayerWeights& to = weights_.layers[static_cast<size_t>(layer)];
    ASSIGN_OR_RETURN(to.input_gain,
                     LoadVector(LayerName(layer, "input_layernorm.weight"), config_.hidden_size));
    ASSIGN_OR_RETURN(
        to.post_attention_gain,
        LoadVector(LayerName(layer, "post_attention_layernorm.weight"), config_.hidden_size));
    if (!config_.qk_norm) return absl::OkStatus();
    ASSIGN_OR_RETURN(to.q_gain,
                     LoadVector(LayerName(layer, "self_attn.q_norm.weight"), config_.head_dim));
    ASSIGN_OR_RETURN(to.k_gain,
                     LoadVector(LayerName(layer, "self_attn.k_norm.weight"), config_.head_dim));
    return absl::OkStatus();
  }

  absl::Status LoadEmbedding() {
    ASSIGN_OR_RETURN(weights_.embedding,
                     Embedding::Load(checkpoint_, shard_, backend_, options_.reader_threads,
                                     [this](int64_t bytes) { Progress(bytes); }));
    weights_.device_bytes += weights_.embedding.device_bytes();
    return absl::OkStatus();
  }

  // One linear as this rank has it: row ranges of one or several linears of a layer under one
  // another, all with the same columns.
  struct Part {
    const char* name;
    Range rows;
  };
  struct Fused {
    int64_t layer = 0;
    std::vector<Part> parts;
    Range columns;

    int64_t rows() const {
      int64_t sum = 0;
      for (const Part& part : parts) sum += part.rows.size();
      return sum;
    }
  };

  // Rows [begin, end) of the whole.
  absl::StatusOr<LinearWeight> ReadFused(const Fused& fused, int64_t begin, int64_t end) const {
    std::vector<LinearWeight> weights;
    for (const Part& part : fused.parts) {
      const Range rows = {part.rows.begin + std::max<int64_t>(begin, 0),
                          std::min(part.rows.end, part.rows.begin + end)};
      if (rows.begin < rows.end) {
        ASSIGN_OR_RETURN(LinearWeight weight,
                         checkpoint_.ReadLinear(LayerName(fused.layer, part.name), rows,
                                                fused.columns, options_.quantization));
        weights.push_back(std::move(weight));
      }
      begin -= part.rows.size();
      end -= part.rows.size();
    }
    if (weights.size() == 1) return std::move(weights.front());
    std::vector<const LinearWeight*> pointers;
    for (const LinearWeight& weight : weights) pointers.push_back(&weight);
    return ToAbsl(kernels::ConcatenateRows(pointers));
  }

  std::vector<Part> QkvParts() const {
    const int64_t head_dim = config_.head_dim;
    std::vector<Part> parts = {
        {"self_attn.q_proj", {shard_.heads.begin * head_dim, shard_.heads.end * head_dim}}};
    for (const char* name : {"self_attn.k_proj", "self_attn.v_proj"}) {
      const size_t first = parts.size();
      for (const int64_t head : shard_.kv_heads) {  // consecutive heads are read as one range
        if (parts.size() > first && parts.back().rows.end == head * head_dim) {
          parts.back().rows.end += head_dim;
        } else {
          parts.push_back({name, {head * head_dim, (head + 1) * head_dim}});
        }
      }
    }
    return parts;
  }

  Fused LayerLinear(int64_t index) const {
    const int64_t layer = index / kLinearsPerLayer;
    const int64_t head_dim = config_.head_dim;
    const Range hidden = {0, config_.hidden_size};
    switch (index % kLinearsPerLayer) {
      case 0:
        return {layer, QkvParts(), hidden};
      case 1:
        return {layer,
                {{"self_attn.o_proj", hidden}},
                {shard_.heads.begin * head_dim, shard_.heads.end * head_dim}};
      case 2:
        return {layer,
                {{"mlp.gate_proj", shard_.intermediate}, {"mlp.up_proj", shard_.intermediate}},
                hidden};
      default:
        return {layer, {{"mlp.down_proj", hidden}}, shard_.intermediate};
    }
  }

  absl::StatusOr<std::unique_ptr<PackedLinear>> Count(
      kernels::StatusOr<std::unique_ptr<PackedLinear>> packed) {
    if (!packed.ok()) return ToAbsl(packed.status());
    weights_.device_bytes += (*packed)->bytes;
    Progress((*packed)->bytes);
    return *std::move(packed);
  }

  // By the backend's own threads, piece by piece: nothing but what is being read is held beside the
  // packed weights.
  absl::StatusOr<std::unique_ptr<PackedLinear>> PackPieces(
      int64_t rows, const std::function<absl::StatusOr<LinearWeight>(int64_t, int64_t)>& read) {
    PieceError error;
    auto packed = backend_.PackPieces(
        rows, [&](int64_t begin, int64_t end) { return error.Take(read(begin, end)); });
    RETURN_IF_ERROR(error.status());
    return Count(std::move(packed));
  }

  std::unique_ptr<PackedLinear>& PlaceOf(int64_t index) {
    LayerWeights& layer = weights_.layers[static_cast<size_t>(index / kLinearsPerLayer)];
    std::unique_ptr<PackedLinear>* places[kLinearsPerLayer] = {
        &layer.qkv, &layer.o, &layer.feed_forward.gate_up, &layer.feed_forward.down};
    return *places[index % kLinearsPerLayer];
  }

  absl::Status LoadLinears() {
    const int64_t count = config_.layers * kLinearsPerLayer;
    if (backend_.PacksPieces(LinearFormat(config_, options_.quantization))) {
      for (int64_t index = 0; index < count; ++index) {
        const Fused fused = LayerLinear(index);
        ASSIGN_OR_RETURN(PlaceOf(index), PackPieces(fused.rows(), [&](int64_t begin, int64_t end) {
                           return ReadFused(fused, begin, end);
                         }));
      }
      return absl::OkStatus();
    }
    const auto read = [&](int64_t index) {
      const Fused fused = LayerLinear(index);
      return ReadFused(fused, 0, fused.rows());
    };
    const auto place = [&](int64_t index, LinearWeight weight) -> absl::Status {
      ASSIGN_OR_RETURN(PlaceOf(index), Count(backend_.Pack(weight)));
      return absl::OkStatus();
    };
    return ReadAhead<LinearWeight>(count, options_.reader_threads, read, place);
  }

  // Rows [begin, end) of this rank's head, as stored; rows beyond the vocabulary are zero.
  absl::StatusOr<FloatMatrix> HeadRows(int64_t begin, int64_t end) const {
    const int64_t cols = config_.hidden_size;
    const Range ids = {std::min(shard_.vocab.end, shard_.vocab.begin + begin),
                       std::min(shard_.vocab.end, shard_.vocab.begin + end)};
    FloatMatrix matrix{.type = config_.float_type, .rows = 0, .cols = cols, .data = {}};
    if (ids.size() > 0) {
      const char* name =
          config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
      ASSIGN_OR_RETURN(matrix, checkpoint_.ReadRows(name, ids, cols));
    }
    matrix.rows = end - begin;
    matrix.data.resize(static_cast<size_t>(matrix.rows * cols * FloatBytes(matrix.type)), 0);
    return matrix;
  }

  // The same in the format it is served in.
  absl::StatusOr<LinearWeight> ReadHead(int64_t begin, int64_t end, WeightFormat format) const {
    const int64_t rows = end - begin, cols = config_.hidden_size;
    ASSIGN_OR_RETURN(FloatMatrix matrix, HeadRows(begin, end));
    if (format == WeightFormat::kHalfFixedOrder) RETURN_IF_ERROR(RoundToHalf(matrix));
    if (format == WeightFormat::kW8) {
      return ToAbsl(kernels::RtnInt8PerRow(ToFloats(matrix).data(), rows, cols));
    }
    if (format == WeightFormat::kW4Group128) {
      return ToAbsl(kernels::RtnGroup128(ToFloats(matrix).data(), rows, cols));
    }
    LinearWeight weight;
    weight.format = format;
    weight.float_type = matrix.type;
    weight.n = rows;
    weight.k = cols;
    weight.floats = std::move(matrix.data);
    return weight;
  }

  absl::Status LoadHead() {
    const WeightFormat format = LmHeadFormat(config_, options_);
    const int64_t rows = shard_.vocab_rows;
    if (backend_.PacksPieces(format)) {
      ASSIGN_OR_RETURN(weights_.lm_head, PackPieces(rows, [&](int64_t begin, int64_t end) {
                         return ReadHead(begin, end, format);
                       }));
      return absl::OkStatus();
    }
    std::vector<LinearWeight> chunks;
    const auto read = [&](int64_t chunk) {
      const int64_t begin = chunk * kVocabChunkRows;
      return ReadHead(begin, std::min(rows, begin + kVocabChunkRows), format);
    };
    const auto keep = [&](int64_t, LinearWeight chunk) {
      chunks.push_back(std::move(chunk));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ReadAhead<LinearWeight>((rows + kVocabChunkRows - 1) / kVocabChunkRows,
                                            options_.reader_threads, read, keep));
    std::vector<const LinearWeight*> pointers;
    for (const LinearWeight& chunk : chunks) pointers.push_back(&chunk);
    ASSIGN_OR_RETURN(const LinearWeight whole, ToAbsl(kernels::ConcatenateRows(pointers)));
    chunks.clear();
    ASSIGN_OR_RETURN(weights_.lm_head, Count(backend_.Pack(whole)));
    return absl::OkStatus();
  }

  // An estimate of the whole from what its linears take: for a progress bar, not for accounting.
  int64_t EstimatedTotal() const {
    const bool quantized = config_.scheme != checkpoint::Scheme::kFloat ||
                           options_.quantization != LoadQuantization::kNone;
    const int64_t rows = (shard_.heads.size() + 2 * shard_.local_kv_heads()) * config_.head_dim +
                         shard_.heads.size() * config_.head_dim + 3 * shard_.intermediate.size();
    const int64_t linears = config_.layers * rows * config_.hidden_size;
    const int64_t copied_rows = backend_.info().host_memory ? 0 : shard_.vocab.size();
    const int64_t float_bytes = FloatBytes(config_.float_type);
    return (quantized ? linears / 2 : linears * float_bytes) +
           (copied_rows * float_bytes + shard_.vocab_rows * (quantized ? 1 : float_bytes)) *
               config_.hidden_size;
  }

  void Progress(int64_t bytes) {
    done_ += bytes;
    if (options_.progress) options_.progress(done_, std::max(done_, EstimatedTotal()));
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Shard& shard_;
  kernels::Backend& backend_;
  const WeightOptions& options_;
  ModelWeights weights_;
  int64_t done_ = 0;
};

}  // namespace

WeightFormat LinearFormat(const ModelConfig& config, LoadQuantization quantization) {
  using checkpoint::Scheme;
  if (config.scheme == Scheme::kQoqGroup128 || quantization == LoadQuantization::kRtnGroup128) {
    return WeightFormat::kW4Group128;
  }
  if (config.scheme == Scheme::kQoqPerChannel || quantization == LoadQuantization::kRtnPerChannel) {
    return WeightFormat::kW4PerChannel;
  }
  return WeightFormat::kFloat;
}

WeightFormat LmHeadFormat(const ModelConfig& config, const WeightOptions& options) {
  const auto of_bits = [](int bits) {
    return bits == 4   ? WeightFormat::kW4Group128
           : bits == 8 ? WeightFormat::kW8
                       : WeightFormat::kHalfFixedOrder;
  };
  switch (options.lm_head) {
    case LmHeadType::kFp16:
      return WeightFormat::kHalfFixedOrder;
    case LmHeadType::kInt8:
      return WeightFormat::kW8;
    case LmHeadType::kInt4:
      return WeightFormat::kW4Group128;
    case LmHeadType::kAuto:
      break;
  }
  if (config.lm_head_bits) return of_bits(*config.lm_head_bits);
  const bool quantized = config.scheme != checkpoint::Scheme::kFloat ||
                         options.quantization != LoadQuantization::kNone;
  return quantized ? WeightFormat::kW8 : WeightFormat::kFloat;
}

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const Shard& shard,
                                         kernels::Backend& backend, const WeightOptions& options) {
  return Loader(checkpoint, shard, backend, options).Load();
}

}  // namespace qserve::worker::model
