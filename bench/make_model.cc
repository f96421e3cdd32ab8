// See make_model.h. Every tensor is a pure function of its name and the seed
// (worker/checkpoint/random_weights.h): threads fill pieces of a chunk, the main one writes it.
#include "bench/make_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "bench/byte_tokenizer.h"
#include "bench/model_shapes.h"
#include "common/philox.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "quantizer/export.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/random_weights.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qserve::bench {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Dtype;
using ckpt::Scheme;

constexpr int64_t kChunkElements = int64_t{1} << 24;
constexpr int64_t kPieceElements = int64_t{1} << 18;  // what a thread takes at a time
constexpr size_t kFloatPiece = 1024;

// How a tensor's elements come about. Called for elements [begin, begin + bytes / element size),
// begin a multiple of 32.
using Filler = std::function<void(const std::string& name, int64_t begin, std::span<uint8_t> out)>;

void StoreFloats(Dtype dtype, std::span<const float> values, uint8_t* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == Dtype::kF32) {
      std::memcpy(out + 4 * i, &values[i], 4);
      continue;
    }
    const uint16_t bits =
        dtype == Dtype::kF16 ? kernels::FloatToHalf(values[i]) : kernels::FloatToBf16(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

Filler Floats(Dtype dtype, uint32_t seed, ckpt::RandomRange range) {
  return [=](const std::string& name, int64_t begin, std::span<uint8_t> out) {
    const auto size = static_cast<size_t>(ckpt::DtypeBytes(dtype));
    float values[kFloatPiece];
    for (size_t done = 0; done < out.size() / size; done += kFloatPiece) {
      const std::span<float> piece(values, std::min(kFloatPiece, out.size() / size - done));
      ckpt::FillRandom(name, seed, range, begin + static_cast<int64_t>(done), piece);
      StoreFloats(dtype, piece, out.data() + done * size);
    }
  };
}

// Bytes of the stream, changed one by one.
Filler Bytes(uint32_t seed, uint8_t (*map)(uint8_t)) {
  return [=](const std::string& name, int64_t begin, std::span<uint8_t> out) {
    ckpt::FillRandomBytes(name, seed, begin / int64_t{sizeof(PhiloxBlock)}, out);
    if (map != nullptr) std::transform(out.begin(), out.end(), out.begin(), map);
  };
}

// g128: codes are uniform 0-15, group scales 8-15, the zero of every group is 8: codes stay within
// -120..105.
constexpr int kGroupZero = 8;
constexpr uint8_t GroupScale(uint8_t random) { return static_cast<uint8_t>(8 + random % 8); }
constexpr uint8_t GroupOffset(uint8_t random) {
  return static_cast<uint8_t>(-kGroupZero * GroupScale(random));
}

// Root mean squares of a uniform code around its zero, alone and times a group scale.
constexpr double kCodeRms = 4.637;
constexpr double kGroupRms = kCodeRms * 11.726;

class ModelMaker {
 public:
  ModelMaker(const ckpt::ModelConfig& config, const MakeModelOptions& options,
             ckpt::OutputDirectory& output)
      : config_(config), options_(options), tensors_(Tensors()), writer_(output, tensors_) {}

  absl::Status Run() {
    const std::map<std::string, Filler> fillers =
        options_.scheme == Scheme::kFloat ? FloatFillers() : QoqFillers();
    for (const ckpt::TensorInfo& tensor : tensors_)
      RETURN_IF_ERROR(Write(tensor, fillers.at(tensor.name)));
    return writer_.Finish();
  }

 private:
  std::vector<ckpt::TensorInfo> Tensors() const {
    if (options_.scheme != Scheme::kFloat) return quantizer::QoqTensors(config_, options_.scheme);
    std::vector<ckpt::TensorInfo> tensors;
    for (const ckpt::TensorSpec& spec : ckpt::FloatTensors(config_)) {
      tensors.push_back({spec.name, options_.dtype, spec.shape});
    }
    return tensors;
  }

  std::map<std::string, Filler> FloatFillers() const {
    std::map<std::string, Filler> fillers;
    for (const ckpt::TensorSpec& spec : ckpt::FloatTensors(config_)) {
      fillers[spec.name] = Floats(options_.dtype, options_.seed, ckpt::RangeOf(spec));
    }
    return fillers;
  }

  std::map<std::string, Filler> QoqFillers() const;
  void AddLinear(const ckpt::LinearSpec& linear, std::map<std::string, Filler>& fillers) const;
  absl::Status Write(const ckpt::TensorInfo& tensor, const Filler& filler);

  const ckpt::ModelConfig& config_;
  const MakeModelOptions& options_;
  std::vector<ckpt::TensorInfo> tensors_;
  ckpt::SafetensorsWriter writer_;
};

void ModelMaker::AddLinear(const ckpt::LinearSpec& linear,
                           std::map<std::string, Filler>& fillers) const {
  const uint32_t seed = options_.seed;
  const bool group = options_.scheme == Scheme::kQoqGroup128;
  const double rms = (group ? kGroupRms : kCodeRms) * std::sqrt(static_cast<double>(linear.k));
  const auto scale = static_cast<float>(1.0 / rms);
  fillers[linear.name + ".qweight"] = Bytes(seed, nullptr);
  fillers[linear.name + ".bias"] = Floats(Dtype::kF16, seed, {0.5f, 0.0f});
  if (group) {
    fillers[linear.name + ".s1_scales"] = Floats(Dtype::kF16, seed, {0.25f * scale, scale});
    fillers[linear.name + ".s2_scales"] = Bytes(seed, GroupScale);
    // The offset belongs to its scale: both from the stream of the scales.
    fillers[linear.name + ".s2_zeros"] = [seed, stream = linear.name + ".s2_scales"](
                                             const std::string&, int64_t begin,
                                             std::span<uint8_t> out) {
      Bytes(seed, GroupOffset)(stream, begin, out);
    };
  } else {
    // One scale for every row, so that the zero, 7 to 8 of it, need not be paired with it.
    fillers[linear.name + ".s1_scales"] = Floats(Dtype::kF16, seed, {0.0f, scale});
    fillers[linear.name + ".s1_szeros"] = Floats(Dtype::kF16, seed, {0.5f * scale, 7.5f * scale});
  }
}

std::map<std::string, Filler> ModelMaker::QoqFillers() const {
  std::map<std::string, Filler> fillers;
  for (const ckpt::TensorSpec& spec : ckpt::FloatTensors(config_)) {
    const bool folded =
        spec.role == ckpt::TensorRole::kNormGain && spec.shape[0] == config_.hidden_size &&
        !spec.name.ends_with("q_norm.weight") && !spec.name.ends_with("k_norm.weight");
    const ckpt::RandomRange ones{0.0f, 1.0f};
    fillers[spec.name] = Floats(Dtype::kF16, options_.seed, folded ? ones : ckpt::RangeOf(spec));
  }
  const ckpt::TensorSpec head{
      ckpt::kHeadTensor, {config_.vocab_size, config_.hidden_size}, ckpt::TensorRole::kHead};
  fillers[head.name] = Floats(Dtype::kF16, options_.seed, ckpt::RangeOf(head));
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(config_, layer))
      AddLinear(linear, fillers);
  }
  return fillers;
}

absl::Status ModelMaker::Write(const ckpt::TensorInfo& tensor, const Filler& filler) {
  const int64_t element_bytes = ckpt::DtypeBytes(tensor.dtype);
  const int64_t elements = tensor.bytes() / element_bytes;
  std::vector<uint8_t> chunk;
  for (int64_t begin = 0; begin < elements; begin += kChunkElements) {
    if (options_.interrupted != nullptr && *options_.interrupted) {
      return absl::CancelledError("interrupted, nothing was written");
    }
    const int64_t count = std::min(kChunkElements, elements - begin);
    chunk.resize(static_cast<size_t>(count * element_bytes));
    std::atomic<int64_t> next = 0;
    const auto work = [&] {
      for (int64_t at = next.fetch_add(kPieceElements); at < count;
           at = next.fetch_add(kPieceElements)) {
        const int64_t piece = std::min(kPieceElements, count - at);
        filler(tensor.name, begin + at,
               std::span(chunk).subspan(static_cast<size_t>(at * element_bytes),
                                        static_cast<size_t>(piece * element_bytes)));
      }
    };
    {
      const int64_t pieces = (count + kPieceElements - 1) / kPieceElements;
      std::vector<std::jthread> threads;
      for (int64_t i = 1; i < std::min<int64_t>(options_.threads, pieces); ++i)
        threads.emplace_back(work);
      work();
    }
    RETURN_IF_ERROR(writer_.AppendSpan(tensor.name, std::span<const uint8_t>(chunk)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MakeModel(const std::string& shape_name, const std::string& output,
                       const MakeModelOptions& options) {
  ASSIGN_OR_RETURN(const ModelShape shape, FindShape(shape_name));
  ASSIGN_OR_RETURN(const ckpt::ModelConfig config,
                   ckpt::ParseModelConfig(shape.config_json, shape.generation_config_json));
  std::string config_json = shape.config_json;
  if (options.scheme != Scheme::kFloat) {
    ASSIGN_OR_RETURN(config_json, quantizer::QoqConfigJson(shape.config_json, options.scheme,
                                                           /*kv_bits=*/4, /*lm_head_bits=*/0));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> directory,
                   ckpt::OutputDirectory::Create(output, ckpt::Durability::kCached));
  RETURN_IF_ERROR(ModelMaker(config, options, *directory).Run());
  RETURN_IF_ERROR(directory->WriteFile("config.json", config_json));
  RETURN_IF_ERROR(directory->WriteFile("generation_config.json", shape.generation_config_json));
  RETURN_IF_ERROR(directory->WriteFile("tokenizer.json", ByteTokenizerJson()));
  RETURN_IF_ERROR(directory->WriteFile("tokenizer_config.json", ByteTokenizerConfigJson()));
  return directory->Commit();
}

}  // namespace qserve::bench
