// Slices of a checkpoint equal the slices of the whole, touch no more than their bytes, and wrong
// directories are refused by name.
#include "worker/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quantizer/pipeline.h"
#include "quantizer/recipe.h"
#include "tests/fakes/random_model.h"
#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/checkpoint/random_weights.h"

namespace qserve::worker::checkpoint {
namespace {

using kernels::LinearWeight;
using kernels::WeightFormat;
using ::qserve::testing::ExpectError;
using ::qserve::testing::ReadTextFile;
using ::qserve::testing::TemporaryDirectory;
using ::qserve::testing::WriteTextFile;

// Sizes whose cuts by 4 fall inside groups of 128: 640 / 4 = 160.
constexpr const char* kQwen2 = R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 256,
  "intermediate_size": 640, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 64, "vocab_size": 96, "max_position_embeddings": 128, "tie_word_embeddings": true})";

const std::string kDown = "model.layers.0.mlp.down_proj";
const std::string kQuery = "model.layers.0.self_attn.q_proj";

std::unique_ptr<Checkpoint> OpenOrDie(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

LinearWeight Read(const Checkpoint& checkpoint, const std::string& name, Range rows, Range columns,
                  LoadQuantization quantization = LoadQuantization::kNone) {
  absl::StatusOr<LinearWeight> weight = checkpoint.ReadLinear(name, rows, columns, quantization);
  EXPECT_TRUE(weight.ok()) << weight.status();
  if (!weight.ok()) return {};
  EXPECT_TRUE(kernels::Validate(*weight).ok()) << kernels::Validate(*weight).message();
  return *std::move(weight);
}

// What a linear of the random model must hold.
std::vector<float> Expected(const std::string& name, int64_t n, int64_t k) {
  const TensorSpec spec{name + ".weight", {n, k}, TensorRole::kLinearWeight};
  std::vector<float> values(static_cast<size_t>(n * k));
  FillRandom(spec.name, 1, RangeOf(spec), 0, values);
  return values;
}

// Rows [0, n) of `slice` mean what columns [begin, begin + slice.k) of rows [row, row + n) of
// `whole` mean.
void ExpectSlice(const LinearWeight& slice, const LinearWeight& whole, int64_t row, int64_t begin) {
  EXPECT_EQ(slice.format, whole.format);
  EXPECT_EQ(slice.lead, kernels::TakesInt8(slice.format) ? begin % 128 : 0);
  std::vector<float> part(static_cast<size_t>(slice.k)), all(static_cast<size_t>(whole.k));
  for (int64_t n = 0; n < slice.n; ++n) {
    kernels::DequantizeRow(slice, n, part.data());
    kernels::DequantizeRow(whole, row + n, all.data());
    ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin)) << "row " << n;
  }
  if (begin != 0 || whole.bias.empty()) {
    EXPECT_TRUE(slice.bias.empty());
  } else {
    EXPECT_TRUE(std::equal(slice.bias.begin(), slice.bias.end(), whole.bias.begin() + row));
    EXPECT_EQ(static_cast<int64_t>(slice.bias.size()), slice.n);
  }
}

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = fakes::WriteRandomModel(path(), kQwen2, {});
    ASSERT_TRUE(status.ok()) << status;
  }
  std::string path() const { return directory_ / "model"; }

  // The same model through the quantizer.
  std::string Quantized(const char* recipe) {
    quantizer::QuantizeOptions options;
    options.model = path();
    options.output = directory_ / recipe;
    options.settings = (*quantizer::FindRecipe(recipe))->settings;
    const absl::Status status = quantizer::QuantizeModel(options);
    EXPECT_TRUE(status.ok()) << status;
    return options.output;
  }

  // Cuts rows and columns of two linears by 1, 2 and 4.
  void ExpectSlicesEqualWhole(const Checkpoint& checkpoint, LoadQuantization quantization) {
    const LinearWeight down = Read(checkpoint, kDown, {0, 256}, {0, 640}, quantization);
    const LinearWeight query = Read(checkpoint, kQuery, {0, 256}, {0, 256}, quantization);
    EXPECT_EQ(query.bias.size(), 256u);
    for (const int64_t degree : {1, 2, 4}) {
      for (int64_t rank = 0; rank < degree; ++rank) {
        SCOPED_TRACE(degree * 10 + rank);
        const int64_t k = 640 / degree, n = 256 / degree;
        ExpectSlice(Read(checkpoint, kDown, {0, 256}, {rank * k, (rank + 1) * k}, quantization),
                    down, 0, rank * k);
        ExpectSlice(Read(checkpoint, kQuery, {rank * n, (rank + 1) * n}, {0, 256}, quantization),
                    query, rank * n, 0);
      }
    }
  }

  TemporaryDirectory directory_;
};

TEST_F(CheckpointTest, FloatSlicesEqualTheWhole) {
  const auto checkpoint = OpenOrDie(path());
  ASSERT_NE(checkpoint, nullptr);
  const LinearWeight down = Read(*checkpoint, kDown, {0, 256}, {0, 640});
  const std::vector<float> expected = Expected(kDown, 256, 640);
  ASSERT_EQ(down.floats.size(), expected.size() * 4);
  EXPECT_EQ(std::memcmp(down.floats.data(), expected.data(), down.floats.size()), 0);
  ExpectSlicesEqualWhole(*checkpoint, LoadQuantization::kNone);
}

TEST_F(CheckpointTest, LoadQuantizationIsThatOfTheWholeMatrix) {
  const auto checkpoint = OpenOrDie(path());
  ASSERT_NE(checkpoint, nullptr);
  ExpectSlicesEqualWhole(*checkpoint, LoadQuantization::kRtnGroup128);
  ExpectSlicesEqualWhole(*checkpoint, LoadQuantization::kRtnPerChannel);
  // A row-parallel slice needs the scales of whole rows.
  const int64_t before = checkpoint->bytes_read();
  Read(*checkpoint, kDown, {0, 256}, {160, 320}, LoadQuantization::kRtnGroup128);
  EXPECT_EQ(checkpoint->bytes_read() - before, 256 * 640 * 4);
}

TEST_F(CheckpointTest, QoqSlicesEqualTheWhole) {
  for (const char* recipe : {"rtn-g128", "rtn-gchn"}) {
    SCOPED_TRACE(recipe);
    const auto checkpoint = OpenOrDie(Quantized(recipe));
    ASSERT_NE(checkpoint, nullptr);
    ExpectSlicesEqualWhole(*checkpoint, LoadQuantization::kNone);
    EXPECT_FALSE(checkpoint->ReadLinear(kDown, {0, 256}, {16, 640}, LoadQuantization::kNone).ok());
    ExpectError(
        checkpoint->ReadLinear(kDown, {0, 256}, {0, 640}, LoadQuantization::kRtnGroup128).status(),
        absl::StatusCode::kInvalidArgument, "quantized already");
  }
}

// What a rank reads is what its slices hold, groups that straddle a cut whole.
TEST_F(CheckpointTest, TouchesOnlyItsSlices) {
  for (const char* recipe : {"rtn-g128", "rtn-gchn"}) {
    const std::string model = Quantized(recipe);
    for (const int64_t degree : {2, 4}) {
      const auto checkpoint = OpenOrDie(model);
      ASSERT_NE(checkpoint, nullptr);
      const int64_t sampled =
          checkpoint->bytes_read();  // for the digest: 96 bytes a tensor at most
      EXPECT_LE(sampled, 96 * 45);
      const bool group = checkpoint->config().scheme == Scheme::kQoqGroup128;
      const int64_t k = 640 / degree, n = 256 / degree;
      Read(*checkpoint, kDown, {0, 256}, {k, 2 * k});
      Read(*checkpoint, kQuery, {n, 2 * n}, {0, 256});
      ASSERT_TRUE(checkpoint->ReadRows("lm_head.weight", {0, 48}, 256).ok());
      const int64_t down_groups = (k % 128 + k + 127) / 128;
      const int64_t scales = group ? 2 : 4;  // bytes of s1_* per row
      const int64_t slices = 256 * k / 2 + 256 * scales + (group ? 2 * 256 * down_groups : 0) +  //
                             n * 256 / 2 + n * scales + n * 2 + (group ? 2 * n * 2 : 0) +
                             48 * 256 * 2;
      EXPECT_EQ(checkpoint->bytes_read() - sampled, slices);
    }
  }
}

TEST_F(CheckpointTest, ReadsRowsAndVectors) {
  const auto checkpoint = OpenOrDie(path());
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_FALSE(checkpoint->Has("lm_head.weight"));  // tied
  const auto rows = checkpoint->ReadRows(kEmbeddingTensor, {10, 12}, 256);
  ASSERT_TRUE(rows.ok()) << rows.status();
  std::vector<float> expected(512);
  FillRandom(kEmbeddingTensor, 1, {1.0f, 0.0f}, 10 * 256, expected);
  EXPECT_EQ(std::memcmp(rows->data.data(), expected.data(), 2048), 0);
  const auto gain = checkpoint->ReadVector(kFinalNormTensor, 256);
  ASSERT_TRUE(gain.ok());
  expected.resize(256);
  FillRandom(kFinalNormTensor, 1, {0.1f, 1.0f}, 0, expected);
  EXPECT_EQ(*gain, expected);
}

TEST_F(CheckpointTest, RefusesRangesOutsideATensor) {
  const auto checkpoint = OpenOrDie(path());
  ASSERT_NE(checkpoint, nullptr);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  for (const Range range : {Range{-32, 32}, Range{0, 288}, Range{32, 32}, Range{64, 32},
                            Range{INT64_MAX - 1, INT64_MAX}}) {
    ExpectError(checkpoint->ReadLinear(kDown, range, {0, 640}, LoadQuantization::kNone).status(),
                kInvalid, kDown);
    ExpectError(
        checkpoint->ReadLinear(kQuery, {0, 32}, range, LoadQuantization::kRtnGroup128).status(),
        kInvalid, kQuery);
    EXPECT_EQ(checkpoint->ReadRows(kEmbeddingTensor, range, 256).status().code(), kInvalid);
  }
  EXPECT_EQ(checkpoint->ReadRows(kEmbeddingTensor, {0, 1}, 255).status().code(), kInvalid);
  EXPECT_EQ(checkpoint->ReadVector(kFinalNormTensor, 255).status().code(), kInvalid);
  EXPECT_EQ(checkpoint->ReadVector(kFinalNormTensor, 257).status().code(), kInvalid);
  EXPECT_EQ(checkpoint->ReadVector("nothing", 1).status().code(), kInvalid);
  EXPECT_EQ(checkpoint->ReadVector(kEmbeddingTensor, 96).status().code(), kInvalid);
}

TEST_F(CheckpointTest, HalfTypesAreReadAsStored) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16}) {
    const std::string model = directory_ / DtypeName(dtype);
    fakes::RandomModelOptions options;
    options.dtype = dtype;
    options.max_shard_bytes = 100000;
    ASSERT_TRUE(fakes::WriteRandomModel(model, kQwen2, options).ok());
    EXPECT_TRUE(std::filesystem::exists(model + "/model.safetensors.index.json"));
    const auto checkpoint = OpenOrDie(model);
    ASSERT_NE(checkpoint, nullptr);
    const LinearWeight down = Read(*checkpoint, kDown, {0, 256}, {0, 640});
    EXPECT_EQ(down.float_type,
              dtype == Dtype::kF16 ? kernels::FloatType::kF16 : kernels::FloatType::kBf16);
    const std::vector<float> expected = Expected(kDown, 256, 640);
    std::vector<float> row(640);
    kernels::DequantizeRow(down, 255, row.data());
    for (size_t i = 0; i < 640; ++i)
      EXPECT_NEAR(row[i], expected[255 * 640 + i], 0.005f * std::abs(row[i]) + 1e-6f);
  }
}

TEST_F(CheckpointTest, DetectsTheSchemeWithoutQuantizationConfig) {
  for (const char* recipe : {"rtn-g128", "rtn-gchn"}) {
    const std::string model = Quantized(recipe);
    const Scheme expected = OpenOrDie(model)->config().scheme;
    nlohmann::json config = nlohmann::json::parse(ReadTextFile(model + "/config.json"));
    config.erase("quantization_config");
    WriteTextFile(model + "/config.json", config.dump());
    const auto checkpoint = OpenOrDie(model);
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_EQ(checkpoint->config().scheme, expected);
    config["quantization_config"] = {{"quant_method", "qoq"},
                                     {"group_size", expected == Scheme::kQoqGroup128 ? -1 : 128}};
    WriteTextFile(model + "/config.json", config.dump());
    ExpectError(Checkpoint::Open(model).status(), absl::StatusCode::kInvalidArgument, "is missing");
  }
}

TEST_F(CheckpointTest, RefusesTensorsThatDoNotFitTheConfiguration) {
  const std::string text = ReadTextFile(path() + "/config.json");
  const auto refused = [&](const char* key, const nlohmann::json& value, const std::string& why) {
    nlohmann::json config = nlohmann::json::parse(text);
    config[key] = value;
    WriteTextFile(path() + "/config.json", config.dump());
    ExpectError(Checkpoint::Open(path()).status(), absl::StatusCode::kInvalidArgument, why);
  };
  refused("intermediate_size", 672,
          "gate_proj.weight has the shape [640, 256], config.json asks for [672, 256]");
  refused("num_hidden_layers", 2, "model.layers.1.input_layernorm.weight is missing");
  refused("tie_word_embeddings", false, "lm_head.weight is missing");
  refused("architectures", {"LlamaForCausalLM"}, "q_proj.bias is there");
  refused("architectures", {"Qwen3ForCausalLM"}, "q_norm.weight is missing");
  std::filesystem::remove(path() + "/config.json");
  ExpectError(Checkpoint::Open(path()).status(), absl::StatusCode::kNotFound, "config.json");
}

TEST_F(CheckpointTest, DigestTellsModelsApart) {
  const uint64_t digest = OpenOrDie(path())->digest();
  EXPECT_EQ(OpenOrDie(path())->digest(), digest);
  fakes::RandomModelOptions other;
  other.seed = 2;
  ASSERT_TRUE(fakes::WriteRandomModel(directory_ / "other", kQwen2, other).ok());
  EXPECT_NE(OpenOrDie(directory_ / "other")->digest(), digest);
  WriteTextFile(path() + "/config.json", std::string(kQwen2) + "\n");
  EXPECT_NE(OpenOrDie(path())->digest(), digest);
}

}  // namespace
}  // namespace qserve::worker::checkpoint
