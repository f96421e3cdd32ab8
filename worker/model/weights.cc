#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
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
  for (size_t i = 0; i < floats.size(); ++i) {
    floats[i] = FloatAt(matrix.type, matrix.data.data(), static_cast<int64_t>(i));
  }
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
    const int64_t rows = shard_.vocab.size(), cols = config_.hidden_size;
    weights_.embedding_table = {
        .first_id = static_cast<int32_t>(shard_.vocab.begin), .rows = rows, .cols = cols};
    if (rows == 0) return absl::OkStatus();
    const auto read = [&](int64_t chunk) {
      const int64_t begin = shard_.vocab.begin + chunk * kVocabChunkRows;
      return checkpoint_.ReadRows("model.embed_tokens.weight",
                                  {begin, std::min(shard_.vocab.end, begin + kVocabChunkRows)},
                                  cols);
    };
    const auto copy = [&](int64_t chunk, FloatMatrix part) -> absl::Status {
      const int64_t row_bytes = cols * FloatBytes(part.type);
      if (chunk == 0) {
        ASSIGN_OR_RETURN(weights_.embedding, Allocate(rows * row_bytes));
        weights_.embedding_table.type = part.type;
        weights_.embedding_table.data = weights_.embedding.data();
      }
      backend_.CopyToDevice(weights_.embedding.as<uint8_t>() + chunk * kVocabChunkRows * row_bytes,
                            part.data.data(), part.rows * row_bytes);
      Progress(part.rows * row_bytes);
      if (config_.tie_word_embeddings) tied_head_.push_back(std::move(part));
      return absl::OkStatus();
    };
    return ReadAhead<FloatMatrix>((rows + kVocabChunkRows - 1) / kVocabChunkRows,
                                  options_.reader_threads, read, copy);
  }

  absl::StatusOr<LinearWeight> ReadRowParallel(int64_t layer, const char* name,
                                               Range columns) const {
    return checkpoint_.ReadLinear(LayerName(layer, name), {0, config_.hidden_size}, columns,
                                  options_.quantization);
  }

  // Row ranges of one or several linears over all of hidden, under one another.
  struct Rows {
    const char* name;
    Range range;
  };
  absl::StatusOr<LinearWeight> ReadFused(int64_t layer, const std::vector<Rows>& parts) const {
    std::vector<LinearWeight> weights;
    weights.reserve(parts.size());
    for (const Rows& part : parts) {
      ASSIGN_OR_RETURN(LinearWeight weight,
                       checkpoint_.ReadLinear(LayerName(layer, part.name), part.range,
                                              {0, config_.hidden_size}, options_.quantization));
      weights.push_back(std::move(weight));
    }
    std::vector<const LinearWeight*> pointers;
    for (const LinearWeight& weight : weights) pointers.push_back(&weight);
    return ToAbsl(kernels::ConcatenateRows(pointers));
  }

  absl::StatusOr<LinearWeight> ReadQkv(int64_t layer) const {
    const int64_t head_dim = config_.head_dim;
    std::vector<Rows> parts = {
        {"self_attn.q_proj", {shard_.heads.begin * head_dim, shard_.heads.end * head_dim}}};
    for (const char* name : {"self_attn.k_proj", "self_attn.v_proj"}) {
      const size_t first = parts.size();
      for (const int64_t head : shard_.kv_heads) {  // consecutive heads are read as one range
        if (parts.size() > first && parts.back().range.end == head * head_dim) {
          parts.back().range.end += head_dim;
        } else {
          parts.push_back({name, {head * head_dim, (head + 1) * head_dim}});
        }
      }
    }
    return ReadFused(layer, parts);
  }

  absl::StatusOr<LinearWeight> ReadLayerLinear(int64_t index) const {
    const int64_t layer = index / kLinearsPerLayer;
    const int64_t head_dim = config_.head_dim;
    switch (index % kLinearsPerLayer) {
      case 0:
        return ReadQkv(layer);
      case 1:
        return ReadRowParallel(layer, "self_attn.o_proj",
                               {shard_.heads.begin * head_dim, shard_.heads.end * head_dim});
      case 2:
        return ReadFused(
            layer, {{"mlp.gate_proj", shard_.intermediate}, {"mlp.up_proj", shard_.intermediate}});
      default:
        return ReadRowParallel(layer, "mlp.down_proj", shard_.intermediate);
    }
  }

  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight) {
    ASSIGN_OR_RETURN(std::unique_ptr<PackedLinear> packed, ToAbsl(backend_.Pack(weight)));
    weights_.device_bytes += packed->bytes;
    Progress(packed->bytes);
    return packed;
  }

  absl::Status LoadLinears() {
    const auto place = [&](int64_t index, LinearWeight weight) -> absl::Status {
      LayerWeights& layer = weights_.layers[static_cast<size_t>(index / kLinearsPerLayer)];
      std::unique_ptr<PackedLinear>* places[kLinearsPerLayer] = {
          &layer.qkv, &layer.o, &layer.feed_forward.gate_up, &layer.feed_forward.down};
      ASSIGN_OR_RETURN(*places[index % kLinearsPerLayer], Pack(weight));
      return absl::OkStatus();
    };
    return ReadAhead<LinearWeight>(
        config_.layers * kLinearsPerLayer, options_.reader_threads,
        [&](int64_t index) { return ReadLayerLinear(index); }, place);
  }

  // This rank's rows of the head in a chunk, as stored; none where the vocabulary has ended.
  absl::StatusOr<FloatMatrix> HeadRows(int64_t chunk) const {
    const int64_t cols = config_.hidden_size;
    const int64_t begin = shard_.vocab.begin + chunk * kVocabChunkRows;
    const Range ids = {std::min(shard_.vocab.end, begin),
                       std::min(shard_.vocab.end, begin + kVocabChunkRows)};
    if (ids.size() == 0)
      return FloatMatrix{.type = config_.float_type, .rows = 0, .cols = cols, .data = {}};
    if (config_.tie_word_embeddings) return tied_head_[static_cast<size_t>(chunk)];
    return checkpoint_.ReadRows("lm_head.weight", ids, cols);
  }

  // `rows` rows of this rank's head in the format it is served in; rows beyond the vocabulary are
  // zero.
  absl::StatusOr<LinearWeight> ReadHeadChunk(int64_t chunk, int64_t rows,
                                             WeightFormat format) const {
    const int64_t cols = config_.hidden_size;
    ASSIGN_OR_RETURN(FloatMatrix matrix, HeadRows(chunk));
    matrix.rows = rows;
    matrix.data.resize(static_cast<size_t>(rows * cols * FloatBytes(matrix.type)), 0);
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
    std::vector<LinearWeight> chunks;
    const auto read = [&](int64_t chunk) {
      return ReadHeadChunk(
          chunk, std::min(kVocabChunkRows, shard_.vocab_rows - chunk * kVocabChunkRows), format);
    };
    const auto keep = [&](int64_t, LinearWeight chunk) {
      chunks.push_back(std::move(chunk));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(
        ReadAhead<LinearWeight>((shard_.vocab_rows + kVocabChunkRows - 1) / kVocabChunkRows,
                                options_.reader_threads, read, keep));
    tied_head_.clear();
    std::vector<const LinearWeight*> pointers;
    for (const LinearWeight& chunk : chunks) pointers.push_back(&chunk);
    ASSIGN_OR_RETURN(const LinearWeight whole, ToAbsl(kernels::ConcatenateRows(pointers)));
    chunks.clear();
    ASSIGN_OR_RETURN(weights_.lm_head, Pack(whole));
    return absl::OkStatus();
  }

  // An estimate of the whole from what its linears take: for a progress bar, not for accounting.
  int64_t EstimatedTotal() const {
    const bool quantized = config_.scheme != checkpoint::Scheme::kFloat ||
                           options_.quantization != LoadQuantization::kNone;
    const int64_t rows = (shard_.heads.size() + 2 * shard_.local_kv_heads()) * config_.head_dim +
                         shard_.heads.size() * config_.head_dim + 3 * shard_.intermediate.size();
    const int64_t linears = config_.layers * rows * config_.hidden_size;
    const int64_t vocabulary = (shard_.vocab.size() + shard_.vocab_rows) * config_.hidden_size;
    const int64_t float_bytes = FloatBytes(config_.float_type);
    return (quantized ? linears / 2 : linears * float_bytes) +
           vocabulary * (quantized ? 3 : 2 * float_bytes) / 2;
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
  std::vector<FloatMatrix>
      tied_head_;  // the embedding's chunks, kept for a head that is the same tensor: read once
  ModelWeights weights_;
  int64_t done_ = 0;
};

}  // namespace

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
