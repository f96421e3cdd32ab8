// Gives a model the outliers that large models have, so that what quantization does against them
// can be measured on a small one: accuracy.sh runs it. Works on a directory of floating-point
// weights and writes another in fp32, all on one thread.
//
//   keys      pair-equal factors on keys, divided out of queries: same function
//   down      factors on up_proj's rows, divided out of down_proj's columns: same function
//   residual  norm gains folded, then the residual stream reflected so that the direction in which
//             it is largest becomes one channel: same function
//   key-bias  a bias on the keys of the lowest-frequency pair, as Qwen has: another function
#include <fmt/format.h>

#include <Eigen/Eigenvalues>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "common/cli/options.h"
#include "common/mapped_file.h"
#include "common/status_macros.h"
#include "kernels/device_factory.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/evaluate/text_tokens.h"
#include "quantizer/export.h"
#include "quantizer/transform/fold.h"
#include "quantizer/transform/smooth.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

struct Flags {
  std::string model, output, text;
  std::string kind = "keys";
  double factor = 20;
};

struct Model {
  MatrixF embedding, head;
  VectorF final_gain;
  std::vector<BlockWeights> blocks;
};

absl::StatusOr<Model> Read(const ckpt::Checkpoint& source) {
  const ckpt::ModelConfig& config = source.config();
  Model model;
  ASSIGN_OR_RETURN(model.embedding, ReadMatrixRows(source, ckpt::kEmbeddingTensor,
                                                   {0, config.vocab_size}, config.hidden_size));
  model.head = model.embedding;
  if (!config.tie_word_embeddings) {
    ASSIGN_OR_RETURN(model.head, ReadMatrixRows(source, ckpt::kHeadTensor, {0, config.vocab_size},
                                                config.hidden_size));
  }
  ASSIGN_OR_RETURN(const std::vector<float> gain,
                   source.ReadVector(ckpt::kFinalNormTensor, config.hidden_size));
  model.final_gain = Eigen::Map<const VectorF>(gain.data(), std::ssize(gain));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    ASSIGN_OR_RETURN(BlockWeights block, ReadBlock(source, layer, 1));
    model.blocks.push_back(std::move(block));
  }
  return model;
}

// Two pairs of every kv head: `factor` and half of it.
void GiveKeys(double factor, Model& model) {
  for (BlockWeights& block : model.blocks) {
    const int64_t dim = block.head_dim;
    VectorF lambda = VectorF::Ones(block.kv_heads * dim);
    for (int h = 0; h < block.kv_heads; ++h) {
      const int64_t pairs[] = {(3 + 5 * h) % (dim / 2), (11 + 7 * h) % (dim / 2)};
      for (int64_t i = 0; i < 2; ++i) {
        const auto by = static_cast<float>(static_cast<double>(i + 1) / factor);
        lambda[h * dim + pairs[i]] = lambda[h * dim + pairs[i] + dim / 2] = by;
      }
    }
    transform::ScaleAttention(lambda, block);
  }
}

// One channel in a hundred.
void GiveDown(double factor, Model& model) {
  for (BlockWeights& block : model.blocks) {
    VectorF s = VectorF::Ones(block[kDown].weight.cols());
    for (int64_t i = 17; i < s.size(); i += 100) s[i] = static_cast<float>(1 / factor);
    transform::ScaleFeedForward(s, block);
  }
}

// The reflection that takes the direction in which the residual stream is largest to channel 7.
absl::StatusOr<MatrixD> Reflection(const Flags& flags, const ckpt::ModelConfig& config,
                                   const Model& model) {
  constexpr int64_t kTokens = 256, kChannel = 7;
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadTokens(flags.text, flags.model, kTokens));
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend,
                   worker::model::ToAbsl(kernels::CreateBackend({.device = "cpu", .threads = 1})));
  ASSIGN_OR_RETURN(const auto runner, calibration::BlockRunner::Create(config, *backend, kTokens));
  MatrixF hidden(std::ssize(ids), config.hidden_size);
  for (size_t t = 0; t < ids.size(); ++t)
    hidden.row(static_cast<int64_t>(t)) = model.embedding.row(ids[t]);
  MatrixD moments = MatrixD::Zero(config.hidden_size, config.hidden_size);
  for (const BlockWeights& block : model.blocks) {
    ASSIGN_OR_RETURN(const auto device, runner->Load(block, kernels::KvFormat::kF32));
    RETURN_IF_ERROR(runner->AddAttention(device, hidden));
    RETURN_IF_ERROR(runner->AddFeedForward(device, hidden));
    moments += (hidden.transpose() * hidden).cast<double>() / hidden.squaredNorm();
  }
  const Eigen::SelfAdjointEigenSolver<MatrixD> solver(moments);
  std::printf("the largest direction has %.1f %% of the residual stream's energy\n",
              100 * solver.eigenvalues().maxCoeff() / solver.eigenvalues().sum());
  VectorD w = solver.eigenvectors().col(config.hidden_size - 1);
  w[kChannel] -= 1;
  w /= w.norm();
  return MatrixD(MatrixD::Identity(w.size(), w.size()) - 2 * w * w.transpose());
}

void Turn(const MatrixD& q, MatrixF& rows) {
  rows = (rows.cast<double>() * q).cast<float>().eval();
}

absl::Status GiveResidual(const Flags& flags, const ckpt::ModelConfig& config, Model& model) {
  for (BlockWeights& block : model.blocks) transform::FoldNormGains(block);
  model.head *= model.final_gain.asDiagonal();
  model.final_gain.setOnes();
  ASSIGN_OR_RETURN(const MatrixD q, Reflection(flags, config, model));
  Turn(q, model.embedding);
  Turn(q, model.head);
  for (BlockWeights& block : model.blocks) {
    for (const LinearIndex i : {kQ, kK, kV, kGate, kUp}) Turn(q, block[i].weight);
    for (const LinearIndex i : {kO, kDown}) {
      block[i].weight = (q * block[i].weight.cast<double>()).cast<float>().eval();
      if (block[i].has_bias()) block[i].bias = (q * block[i].bias.cast<double>()).cast<float>();
    }
  }
  return absl::OkStatus();
}

void GiveKeyBias(double factor, Model& model) {
  for (BlockWeights& block : model.blocks) {
    for (const LinearIndex i : {kQ, kK, kV, kO})
      if (!block[i].has_bias()) block[i].bias = VectorF::Zero(block[i].weight.rows());
    const int64_t dim = block.head_dim;
    for (int h = 0; h < block.kv_heads; ++h) {
      block[kK].bias[h * dim + dim / 2 - 1] += static_cast<float>(factor);
      block[kK].bias[h * dim + dim - 1] -= static_cast<float>(factor) / 2;
    }
  }
}

const float* Find(const Model& model, const std::string& name, const VectorF& gain) {
  if (name == ckpt::kEmbeddingTensor) return model.embedding.data();
  if (name == ckpt::kHeadTensor) return model.head.data();
  if (name == ckpt::kFinalNormTensor) return gain.data();
  for (const BlockWeights& block : model.blocks) {
    const std::string prefix = fmt::format("model.layers.{}.", block.layer);
    if (name == prefix + "input_layernorm.weight") return block.input_gain.data();
    if (name == prefix + "post_attention_layernorm.weight") return block.post_attention_gain.data();
    if (name == prefix + "self_attn.q_norm.weight") return block.q_gain.data();
    if (name == prefix + "self_attn.k_norm.weight") return block.k_gain.data();
    for (const FloatLinear& linear : block.linears) {
      if (name == linear.name + ".weight") return linear.weight.data();
      if (name == linear.name + ".bias") return linear.bias.data();
    }
  }
  return nullptr;
}

absl::Status Write(const Flags& flags, const Model& model) {
  ASSIGN_OR_RETURN(const std::string source,
                   ReadSmallFile(flags.model + "/config.json", ckpt::kMaxConfigBytes));
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(source);
  json["tie_word_embeddings"] = false;
  json["torch_dtype"] = "float32";
  if (flags.kind == "key-bias") json["attention_bias"] = true;
  ASSIGN_OR_RETURN(const ckpt::ModelConfig config, ckpt::ParseModelConfig(json.dump(), ""));
  ASSIGN_OR_RETURN(const auto output, ckpt::OutputDirectory::Create(flags.output));
  std::vector<ckpt::TensorInfo> tensors;
  for (const ckpt::TensorSpec& spec : ckpt::FloatTensors(config))
    tensors.push_back({spec.name, ckpt::Dtype::kF32, spec.shape});
  ckpt::SafetensorsWriter writer(*output, tensors);
  for (const ckpt::TensorInfo& tensor : tensors) {
    const float* const values = Find(model, tensor.name, model.final_gain);
    if (values == nullptr) return absl::InternalError(tensor.name);
    RETURN_IF_ERROR(writer.AppendSpan(
        tensor.name,
        std::span<const float>(values, static_cast<size_t>(tensor.bytes()) / sizeof(float))));
  }
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(output->WriteFile("config.json", json.dump(2)));
  RETURN_IF_ERROR(CopyModelFiles(flags.model, *output));
  return output->Commit();
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::Checkpoint> source,
                   ckpt::Checkpoint::Open(flags.model));
  ASSIGN_OR_RETURN(Model model, Read(*source));
  if (flags.kind == "keys") GiveKeys(flags.factor, model);
  if (flags.kind == "down") GiveDown(flags.factor, model);
  if (flags.kind == "residual") RETURN_IF_ERROR(GiveResidual(flags, source->config(), model));
  if (flags.kind == "key-bias") GiveKeyBias(flags.factor, model);
  return Write(flags, model);
}

int Main(int argc, char** argv) {
  Flags flags;
  cli::Options options("qserve-make-outliers", "Give a floating-point model outliers");
  options.Add("model", flags.model, "Directory of the model")->required();
  options.Add("output", flags.output, "Directory to write; must not exist or be empty")->required();
  options.Add("kind", flags.kind, "keys, down, residual or key-bias")
      ->check(CLI::IsMember({"keys", "down", "residual", "key-bias"}));
  options.Add("factor", flags.factor, "How large (not of residual)");
  options.Add("text", flags.text, "For residual: text that shows the largest direction");
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  if (const absl::Status status = Run(flags); !status.ok()) {
    std::fputs(fmt::format("qserve-make-outliers: {}\n", std::string(status.message())).c_str(),
               stderr);
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace qserve::quantizer

int main(int argc, char** argv) { return qserve::quantizer::Main(argc, argv); }
