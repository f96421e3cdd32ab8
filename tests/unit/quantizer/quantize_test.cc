// What qserve-quantize writes: bytes equal to an independent implementation's, errors within the
// step of each group, gains folded, embeddings untied; and refusals that leave nothing behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/quant/half.h"
#include "quantizer/knobs.h"
#include "quantizer/known_models.h"
#include "quantizer/pipeline.h"
#include "quantizer/recipe.h"
#include "tests/fakes/random_model.h"
#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/random_weights.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/tensor_set.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::qserve::testing::ExpectError;
using ::qserve::testing::ReadTextFile;
using ::qserve::testing::WriteTextFile;

Json SmallQwen3() {
  return Json::parse(
      R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 64,
    "attention_bias": true, "tie_word_embeddings": true, "custom_member": [1, 2]})");
}

class QuantizeTest : public ::testing::Test {
 protected:
  void MakeModel(const Json& config, ckpt::Dtype dtype = ckpt::Dtype::kF32) {
    fakes::RandomModelOptions options;
    options.dtype = dtype;
    options.generation_config_json = R"({"temperature": 0.5})";
    const absl::Status status = fakes::WriteRandomModel(model(), config.dump(), options);
    ASSERT_TRUE(status.ok()) << status;
    WriteTextFile(model() + "/tokenizer.json", "{\"tokens\": []}");
  }

  absl::Status Quantize(const char* recipe, int threads = 1,
                        const std::atomic<bool>* interrupted = nullptr) {
    QuantizeOptions options;
    options.model = model();
    options.output = output();
    options.settings = (*FindRecipe(recipe))->settings;
    options.threads = threads;
    options.interrupted = interrupted;
    options.max_shard_bytes = max_shard_bytes_;
    return QuantizeModel(options);
  }

  // Nothing but the model is there.
  void ExpectNothingWritten() {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_.path())) {
      EXPECT_EQ(entry.path().filename(), "model");
    }
  }

  std::string model() const { return directory_ / "model"; }
  std::string output() const { return directory_ / "output"; }

  int64_t max_shard_bytes_ = ckpt::kDefaultShardBytes;
  ::qserve::testing::TemporaryDirectory directory_;
};

std::string Hex(std::span<const uint8_t> bytes) {
  std::string text;
  for (const uint8_t byte : bytes) {
    text.push_back("0123456789abcdef"[byte >> 4]);
    text.push_back("0123456789abcdef"[byte & 15]);
  }
  return text;
}

TEST_F(QuantizeTest, PacksAsAnIndependentImplementation) {
  const Json golden = Json::parse(ReadTextFile("tests/golden/checkpoint/pack.json"));
  ASSERT_EQ(golden.size(), 2u);
  MakeModel(SmallQwen3());
  for (const char* recipe : {"rtn-g128", "rtn-gchn"}) {
    ASSERT_TRUE(Quantize(recipe).ok());
    const auto tensors = ckpt::TensorSet::Open(output());
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    for (const auto& [linear, recipes] : golden.items()) {
      for (const auto& [suffix, expected] : recipes.at(recipe).items()) {
        const auto view = tensors->Find(linear + "." + suffix);
        ASSERT_TRUE(view.has_value()) << linear << suffix;
        EXPECT_EQ(Hex(view->data), expected.get<std::string>())
            << recipe << " " << linear << suffix;
      }
    }
    fs::remove_all(output());
  }
}

TEST_F(QuantizeTest, WritesAWholeModel) {
  MakeModel(SmallQwen3());
  max_shard_bytes_ = 30000;
  ASSERT_TRUE(Quantize("rtn-g128", 3).ok());
  EXPECT_TRUE(fs::exists(output() + "/model.safetensors.index.json"));
  EXPECT_EQ(ReadTextFile(output() + "/tokenizer.json"), ReadTextFile(model() + "/tokenizer.json"));
  EXPECT_EQ(ReadTextFile(output() + "/generation_config.json"),
            ReadTextFile(model() + "/generation_config.json"));
  const Json config = Json::parse(ReadTextFile(output() + "/config.json"));
  EXPECT_EQ(config.at("custom_member"), Json({1, 2}));
  EXPECT_EQ(config.at("tie_word_embeddings"), false);
  EXPECT_EQ(config.at("quantization_config"),
            Json({{"quant_method", "qoq"}, {"wbits", 4}, {"group_size", 128}, {"kv_bits", 4}}));
  const auto checkpoint = ckpt::Checkpoint::Open(output());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config().kv_bits, 4);
  // Gains of blocks and of the end are folded; those of q and k heads cannot be.
  const std::vector<float> ones(128, 1.0f);
  EXPECT_EQ(*(*checkpoint)->ReadVector("model.layers.0.input_layernorm.weight", 128), ones);
  EXPECT_EQ(*(*checkpoint)->ReadVector("model.layers.0.post_attention_layernorm.weight", 128),
            ones);
  EXPECT_EQ(*(*checkpoint)->ReadVector(ckpt::kFinalNormTensor, 128), ones);
  const auto source = *ckpt::Checkpoint::Open(model());
  const std::vector<float> q_norm =
      *source->ReadVector("model.layers.0.self_attn.q_norm.weight", 64);
  const std::vector<float> stored =
      *(*checkpoint)->ReadVector("model.layers.0.self_attn.q_norm.weight", 64);
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(stored[i], kernels::RoundToHalf(q_norm[i]));
  // lm_head is the embedding times the final gain.
  const std::vector<float> gain = *source->ReadVector(ckpt::kFinalNormTensor, 128);
  const ckpt::FloatMatrix embedding = *source->ReadRows(ckpt::kEmbeddingTensor, {5, 6}, 128);
  const ckpt::FloatMatrix head = *(*checkpoint)->ReadRows(ckpt::kHeadTensor, {5, 6}, 128);
  for (size_t i = 0; i < 128; ++i) {
    float value;
    uint16_t bits;
    std::memcpy(&value, embedding.data.data() + 4 * i, 4);
    std::memcpy(&bits, head.data.data() + 2 * i, 2);
    EXPECT_EQ(bits, kernels::FloatToHalf(value * gain[i]));
  }
}

// Every weight lies within one step of its group, and on average within a third of it.
TEST_F(QuantizeTest, ErrorsAreWithinTheSteps) {
  MakeModel(SmallQwen3(), ckpt::Dtype::kBf16);
  for (const char* recipe : {"rtn-g128", "rtn-gchn"}) {
    ASSERT_TRUE(Quantize(recipe).ok());
    const auto source = *ckpt::Checkpoint::Open(model());
    const auto result = *ckpt::Checkpoint::Open(output());
    for (const ckpt::LinearSpec& linear : ckpt::LayerLinears(source->config(), 0)) {
      SCOPED_TRACE(recipe + linear.name);
      std::vector<float> gain(static_cast<size_t>(linear.k), 1.0f);
      if (!linear.norm.empty()) gain = *source->ReadVector(linear.norm, linear.k);
      const auto before = *source->ReadLinear(linear.name, {0, linear.n}, {0, linear.k},
                                              ckpt::LoadQuantization::kNone);
      const auto after = *result->ReadLinear(linear.name, {0, linear.n}, {0, linear.k},
                                             ckpt::LoadQuantization::kNone);
      std::vector<float> exact(gain.size()), rounded(gain.size());
      double squares = 0;
      for (int64_t n = 0; n < linear.n; ++n) {
        kernels::DequantizeRow(before, n, exact.data());
        kernels::DequantizeRow(after, n, rounded.data());
        for (size_t k = 0; k < gain.size(); ++k) {
          const size_t group =
              static_cast<size_t>(n) * static_cast<size_t>(after.groups()) + k / 128;
          const float level2 = after.group_scale.empty() ? 1.0f : after.group_scale[group];
          const float step = after.scale[static_cast<size_t>(n)] * level2;
          const float error = std::abs(exact[k] * gain[k] - rounded[k]) / step;
          ASSERT_LE(error, 1.02f) << "row " << n << " column " << k;
          squares += double{error} * error;
        }
        if (linear.bias) {
          ASSERT_EQ(after.bias[static_cast<size_t>(n)],
                    kernels::RoundToHalf(before.bias[static_cast<size_t>(n)]));
        }
      }
      EXPECT_LT(std::sqrt(squares / static_cast<double>(linear.n * linear.k)), 1.0 / 3.0);
    }
    fs::remove_all(output());
  }
}

TEST_F(QuantizeTest, ThreadsDoNotChangeABit) {
  MakeModel(SmallQwen3());
  ASSERT_TRUE(Quantize("rtn-gchn", 1).ok());
  const std::string once = ReadTextFile(output() + "/model.safetensors");
  fs::remove_all(output());
  ASSERT_TRUE(Quantize("rtn-gchn", 4).ok());
  EXPECT_EQ(ReadTextFile(output() + "/model.safetensors"), once);
}

TEST_F(QuantizeTest, RefusesSizesThatCannotBeStored) {
  Json config = SmallQwen3();
  config["intermediate_size"] = 192;
  MakeModel(config);
  ExpectError(Quantize("rtn-g128"), absl::StatusCode::kInvalidArgument, "down_proj is 128 x 192");
  ExpectNothingWritten();
  EXPECT_TRUE(Quantize("rtn-gchn").ok());
  fs::remove_all(directory_ / "output");
  fs::remove_all(model());
  config["intermediate_size"] = 200;
  MakeModel(config);
  ExpectError(Quantize("rtn-gchn"), absl::StatusCode::kInvalidArgument, "multiples of 32 rows");
  ExpectNothingWritten();
}

// Overwrites one fp32 element of a tensor in place.
void Poison(const std::string& model, const std::string& tensor, float value) {
  const std::string path = model + "/model.safetensors";
  std::string bytes = ReadTextFile(path);
  const auto file = ckpt::SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok());
  const ckpt::TensorEntry* entry = file->Find(tensor);
  ASSERT_NE(entry, nullptr);
  std::memcpy(bytes.data() + entry->end - 4, &value, 4);
  fs::remove(path);
  WriteTextFile(path, bytes);
}

TEST_F(QuantizeTest, RefusesValuesThatAreNotFinite) {
  const std::string block = "model.layers.0.";
  const struct {
    std::string tensor;
    float value;
  } cases[] = {{block + "mlp.down_proj.weight", NAN},
               {block + "self_attn.q_proj.weight", INFINITY},
               {block + "self_attn.q_proj.bias", 1e6f},
               {block + "input_layernorm.weight", NAN},
               {block + "self_attn.k_norm.weight", NAN},
               {ckpt::kFinalNormTensor, INFINITY},
               {ckpt::kEmbeddingTensor, 1e6f}};
  for (const auto& [tensor, value] : cases) {
    SCOPED_TRACE(tensor);
    fs::remove_all(model());
    MakeModel(SmallQwen3());
    Poison(model(), tensor, value);
    const absl::Status status = Quantize("rtn-g128", 2);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    ExpectNothingWritten();
  }
}

TEST_F(QuantizeTest, RefusesWhatIsThereAndWhatIsMissing) {
  ExpectError(Quantize("rtn-g128"), absl::StatusCode::kNotFound, "config.json");
  MakeModel(SmallQwen3());
  fs::create_directory(output());
  WriteTextFile(output() + "/precious", "x");
  ExpectError(Quantize("rtn-g128"), absl::StatusCode::kAlreadyExists, "exists already");
  EXPECT_EQ(ReadTextFile(output() + "/precious"), "x");
  fs::remove(output() + "/precious");
  ASSERT_TRUE(Quantize("rtn-g128").ok());  // an empty directory may be filled
  fs::remove_all(model());
  fs::rename(output(), model());
  ExpectError(Quantize("rtn-g128"), absl::StatusCode::kInvalidArgument, "is quantized already");
  ExpectNothingWritten();
  fs::remove(model() + "/model.safetensors");
  ExpectError(Quantize("rtn-g128"), absl::StatusCode::kNotFound, "neither model.safetensors");
  ExpectNothingWritten();
  ExpectError(FindRecipe("awq").status(), absl::StatusCode::kInvalidArgument,
              "there are qoq-g128, qoq-gchn, rtn-g128, rtn-gchn");
}

TEST_F(QuantizeTest, InterruptionLeavesNothing) {
  MakeModel(SmallQwen3());
  const std::atomic<bool> interrupted = true;
  EXPECT_EQ(Quantize("rtn-g128", 2, &interrupted).code(), absl::StatusCode::kCancelled);
  ExpectNothingWritten();
}

// The recipes that calibrate, on a model small enough for seconds.
class CalibratedTest : public QuantizeTest {
 protected:
  void SetUp() override {
    Json config = SmallQwen3();
    config["num_hidden_layers"] = 3;
    config["max_position_embeddings"] = 64;
    MakeModel(config);
    options_.model = model();
    options_.output = output();
    options_.settings = (*FindRecipe("qoq-g128"))->settings;
    options_.settings.transform.attention.steps = 3;
    options_.settings.transform.down_proj.steps = 1;
    options_.settings.windows = {.samples = 3, .length = 32, .seed = 1};
    for (int32_t i = 0; i < 150; ++i) options_.calibration.push_back(i * i * 7 % 61);
  }

  std::string Weights() const { return ReadTextFile(output() + "/model.safetensors"); }
  bool Unfinished() const {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_.path())) {
      if (entry.path().filename().string().find("unfinished") != std::string::npos) return true;
    }
    return false;
  }

  QuantizeOptions options_;
};

TEST_F(CalibratedTest, ThreadsAndRepetitionDoNotChangeABit) {
  ASSERT_TRUE(QuantizeModel(options_).ok());
  const std::string once = Weights();
  fs::remove_all(output());
  options_.threads = 3;
  ASSERT_TRUE(QuantizeModel(options_).ok());
  EXPECT_EQ(Weights(), once);
  fs::remove_all(output());
  options_.settings.windows.seed = 2;
  ASSERT_TRUE(QuantizeModel(options_).ok());
  EXPECT_NE(Weights(), once);
  EXPECT_FALSE(Unfinished());
  const Json config = Json::parse(ReadTextFile(output() + "/config.json"));
  EXPECT_EQ(config.at("quantization_config").at("lm_head_bits"), 8);
}

// Stopped at one place after another, and gone on with: the bytes of a run that was not stopped.
TEST_F(CalibratedTest, GoesOnWhereItWasInterrupted) {
  ASSERT_TRUE(QuantizeModel(options_).ok());
  const std::string whole = Weights();
  fs::remove_all(output());
  int interruptions = 0, attempts = 0;
  for (bool done = false; !done; ++attempts) {
    ASSERT_LT(attempts, 50);
    int64_t layers = 0;
    options_.layer_done = [&](int64_t) { return ++layers < 2; };
    const absl::Status status = QuantizeModel(options_);
    done = status.ok();
    if (done) break;
    ASSERT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    EXPECT_FALSE(fs::exists(output()));
    EXPECT_TRUE(Unfinished());
    ++interruptions;
  }
  EXPECT_EQ(interruptions, 1);  // behind two blocks of three
  EXPECT_EQ(Weights(), whole);
  EXPECT_FALSE(Unfinished());
}

TEST_F(CalibratedTest, StartsAnewForOtherOptions) {
  options_.layer_done = [](int64_t) { return false; };
  ASSERT_EQ(QuantizeModel(options_).code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(Unfinished());
  options_.layer_done = nullptr;
  options_.settings.solve.damping = 0.02;
  ASSERT_TRUE(QuantizeModel(options_).ok());
  EXPECT_TRUE(Unfinished());  // the other job's
}

TEST_F(CalibratedTest, RefusesWhatCannotWork) {
  QuantizeOptions options = options_;
  options.calibration.clear();
  ExpectError(QuantizeModel(options), absl::StatusCode::kInvalidArgument, "--calibration");
  options = options_;
  options.calibration.resize(20);
  ExpectError(QuantizeModel(options), absl::StatusCode::kInvalidArgument, "less than one window");
  options = options_;
  options.calibration[3] = 64;
  ExpectError(QuantizeModel(options), absl::StatusCode::kInvalidArgument, "vocabulary");
  Poison(model(), "model.layers.2.mlp.down_proj.weight", NAN);
  ExpectError(QuantizeModel(options_), absl::StatusCode::kInvalidArgument,
              "model.layers.2.mlp.down_proj: weight (127, 255) is not finite");
  ExpectNothingWritten();
}

TEST(PublishedSmoothing, IsFoundBySizes) {
  ckpt::ModelConfig config;
  config.hidden_size = 4096;
  config.layers = 32;
  config.intermediate_size = 14336;
  config.vocab_size = 128256;
  config.max_position_embeddings = 8192;
  const auto llama3 = PublishedSmoothing(config, ckpt::Scheme::kQoqGroup128);
  ASSERT_TRUE(llama3.has_value());
  EXPECT_TRUE(llama3->enabled);
  EXPECT_EQ(llama3->alpha, 0.3);
  EXPECT_EQ(llama3->beta, 0.7);
  EXPECT_EQ(PublishedSmoothing(config, ckpt::Scheme::kQoqPerChannel)->alpha, 0.1);
  config.layers = 33;
  EXPECT_FALSE(PublishedSmoothing(config, ckpt::Scheme::kQoqGroup128).has_value());
}

// Every switch by its name: a value that it has, and one that it has not.
TEST(Knobs, AreSetByName) {
  for (const Knob& knob : Knobs()) {
    Settings settings;
    EXPECT_TRUE(SetKnob(knob.name, knob.get(settings), settings).ok()) << knob.name;
    EXPECT_EQ(SetKnob(knob.name, "-3x", settings).code(), absl::StatusCode::kInvalidArgument);
  }
  Settings settings;
  ASSERT_TRUE(SetKnob("rotation", "off", settings).ok());
  EXPECT_FALSE(settings.transform.rotate);
  ASSERT_TRUE(SetKnob("gptq-damping", "0.05", settings).ok());
  EXPECT_EQ(settings.solve.damping, 0.05);
  EXPECT_NE(Describe(settings), Describe(Settings()));
  ExpectError(SetKnob("rotate", "on", settings), absl::StatusCode::kInvalidArgument, "no switch");
}

}  // namespace
}  // namespace qserve::quantizer
