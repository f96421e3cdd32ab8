// Checkpoints of other programs, from the fixtures of an independent writer: the same weights come
// out as the same bytes whatever form they had, and what has no exact form is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quantizer/import/import_model.h"
#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/tensor_set.h"
#include "worker/checkpoint/torch_file.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace fs = std::filesystem;
using ::qserve::testing::ExpectError;
using ::qserve::testing::ReadTextFile;
using ::qserve::testing::WriteTextFile;
using Json = nlohmann::json;

constexpr const char* kFixtures = "tests/golden/import";

class ImportTest : public ::testing::Test {
 protected:
  absl::Status Import(const std::string& model, ImportOptions options = {}) {
    options.model = model;
    options.output = directory_ / "output";
    return ImportModel(options);
  }

  // The fixture `form` gives the very tensors of the packed fixture `expected`, and our reader
  // takes what was written.
  void ExpectSame(const std::string& form, const std::string& expected, ckpt::Scheme scheme) {
    SCOPED_TRACE(form);
    const absl::Status status = Import(Fixture(form));
    ASSERT_TRUE(status.ok()) << status;
    const auto output = ckpt::TensorSet::Open(directory_ / "output");
    ASSERT_TRUE(output.ok()) << output.status();
    const auto torch = ckpt::TorchFile::Open(Fixture(expected) + "/pytorch_model.bin");
    ASSERT_TRUE(torch.ok()) << torch.status();
    EXPECT_EQ(output->Names().size(), torch->tensors().size());
    for (const ckpt::TorchTensor& tensor : torch->tensors()) {
      const auto written = output->Find(tensor.name);
      ASSERT_TRUE(written) << tensor.name;
      EXPECT_TRUE(std::ranges::equal(written->shape, tensor.shape)) << tensor.name;
      EXPECT_TRUE(std::ranges::equal(written->data, torch->Read(tensor))) << tensor.name;
    }
    const auto checkpoint = ckpt::Checkpoint::Open(directory_ / "output");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->config().scheme, scheme);
    EXPECT_EQ((*checkpoint)->config().kv_bits, 4);
    fs::remove_all(directory_ / "output");
  }

  // The directory that a form's files make, laid out at `to`.
  static std::string LayOut(const std::string& form, const std::string& to) {
    fs::remove_all(to);
    fs::create_directory(to);
    for (const fs::directory_entry& entry : fs::directory_iterator(kFixtures)) {
      std::string name = entry.path().filename();
      if (!name.starts_with(form + ".")) continue;
      name.erase(0, form.size() + 1);
      if (name == "model.bin" || name == "scale.bin") name.replace(name.size() - 3, 3, "pt");
      fs::copy_file(entry.path(), to + "/" + name);
    }
    return to;
  }
  std::string Fixture(const std::string& form) { return LayOut(form, fixtures_ / form); }
  // A copy of a fixture that may be changed.
  std::string Copy(const std::string& form) { return LayOut(form, directory_ / "copy"); }
  void EditConfig(const std::string& model, const std::function<void(Json&)>& edit) {
    Json json = Json::parse(ReadTextFile(model + "/config.json"));
    edit(json);
    WriteTextFile(model + "/config.json", json.dump());
  }
  void ExpectRefused(const std::string& model, const std::string& why, ImportOptions options = {}) {
    ExpectError(Import(model, options), absl::StatusCode::kInvalidArgument, why);
    EXPECT_FALSE(fs::exists(directory_ / "output"));
  }

  ::qserve::testing::TemporaryDirectory directory_;
  ::qserve::testing::TemporaryDirectory fixtures_;
};

TEST_F(ImportTest, PublishedCheckpointsKeepTheirBytes) {
  for (const char* label : {"prescale", "postscale"}) {
    const std::string group = std::string("packed-g128-") + label;
    ExpectSame(group, group, ckpt::Scheme::kQoqGroup128);
    const std::string channel = std::string("packed-gchn-") + label;
    ExpectSame(channel, channel, ckpt::Scheme::kQoqPerChannel);
  }
}

TEST_F(ImportTest, DeepCompressorsColumnsAreRecognized) {
  ExpectSame("deepcompressor-columns", "packed-g128-postscale", ckpt::Scheme::kQoqGroup128);
}

TEST_F(ImportTest, ColumnOrderCanBeAskedFor) {
  // The wrong order is taken at its word: that is what a flag is for.
  ImportOptions options;
  options.column_order = ColumnOrder::kQserve;
  ASSERT_TRUE(Import(Fixture("deepcompressor-columns"), options).ok());
  const auto output = ckpt::TensorSet::Open(directory_ / "output");
  const auto source = ckpt::TensorSet::Open(Fixture("deepcompressor-columns"));
  const std::string name = "model.layers.0.self_attn.q_proj.s2_scales";
  EXPECT_TRUE(std::ranges::equal(output->Find(name)->data, source->Find(name)->data));
}

TEST_F(ImportTest, DeepCompressorsScalesGiveBackTheCodes) {
  ExpectSame("deepcompressor-g128", "packed-g128-postscale", ckpt::Scheme::kQoqGroup128);
  ExpectSame("deepcompressor-gchn-postscale", "packed-gchn-postscale",
             ckpt::Scheme::kQoqPerChannel);
  ExpectSame("deepcompressor-gchn-prescale", "packed-gchn-prescale", ckpt::Scheme::kQoqPerChannel);
}

TEST_F(ImportTest, CompressedTensorsMapWhereExact) {
  ExpectSame("compressed-tensors", "packed-compressed-tensors", ckpt::Scheme::kQoqPerChannel);
  ExpectSame("compressed-tensors-int8", "packed-compressed-tensors", ckpt::Scheme::kQoqPerChannel);
}

TEST_F(ImportTest, OwnDirectoriesGoThroughUnchanged) {
  ASSERT_TRUE(Import(Fixture("packed-g128-prescale")).ok());
  const std::string first = ReadTextFile(directory_ / "output/model.safetensors");
  fs::rename(directory_ / "output", directory_ / "first");
  ASSERT_TRUE(Import(directory_ / "first").ok());
  EXPECT_EQ(ReadTextFile(directory_ / "output/model.safetensors"), first);
}

TEST_F(ImportTest, ConfigurationMayStandElsewhere) {
  const std::string model = Copy("deepcompressor-gchn-postscale");
  fs::create_directory(directory_ / "base");
  fs::rename(model + "/config.json", directory_ / "base/config.json");
  WriteTextFile(directory_ / "base/tokenizer.json", "{}");
  fs::rename(model + "/scale.pt", directory_ / "scales");
  ImportOptions options;
  options.base = directory_ / "base";
  options.scales = directory_ / "scales";
  options.format = ImportFormat::kDeepCompressor;
  const absl::Status status = Import(model, options);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ReadTextFile(directory_ / "output/tokenizer.json"), "{}");
}

TEST_F(ImportTest, ShardedArchivesAreRead) {
  const std::string model = Copy("packed-gchn-prescale");
  const std::string rest = model + "/pytorch_model.bin";
  fs::rename(rest, model + "/part-1.bin");
  WriteTextFile(model + "/pytorch_model.bin.index.json",
                R"({"weight_map": {"lm_head.weight": "part-1.bin"}})");
  EXPECT_TRUE(Import(model).ok());
  fs::remove_all(directory_ / "output");
  WriteTextFile(model + "/pytorch_model.bin.index.json",
                R"({"weight_map": {"lm_head.weight": "part-2.bin"}})");
  ExpectError(Import(model), absl::StatusCode::kNotFound, "part-2.bin is missing");
  WriteTextFile(model + "/pytorch_model.bin.index.json",
                R"({"weight_map": {"lm_head.weight": "../copy/part-1.bin"}})");
  ExpectRefused(model, "same directory");
}

TEST_F(ImportTest, RefusesWhatDoesNotFitItsConfiguration) {
  std::string model = Copy("packed-g128-prescale");
  EditConfig(model, [](Json& json) { json["intermediate_size"] = 256; });
  ExpectRefused(model, "gate_proj.qweight has the shape");
  EditConfig(model, [](Json& json) { json["intermediate_size"] = 96; });
  ExpectRefused(model, "multiples of 32 rows and 128 columns");
  EditConfig(model, [](Json& json) {
    json["intermediate_size"] = 128;
    json["num_hidden_layers"] = 2;
  });
  ExpectRefused(model, "model.layers.1.self_attn.q_proj.qweight is missing");
  EditConfig(model, [](Json& json) { json["architectures"] = {"GPT2LMHeadModel"}; });
  ExpectRefused(model, "GPT2LMHeadModel");
  ExpectError(Import(directory_ / "absent"), absl::StatusCode::kNotFound, "config.json");
  model = Copy("packed-g128-prescale");
  fs::remove(model + "/pytorch_model.bin");
  ExpectError(Import(model), absl::StatusCode::kNotFound, "has none of model.safetensors");
}

TEST_F(ImportTest, RefusesScalesThatDoNotFitTheWeights) {
  const std::string model = Copy("deepcompressor-gchn-postscale");
  fs::copy_file(Fixture("deepcompressor-gchn-prescale") + "/scale.pt", model + "/scale.pt",
                fs::copy_options::overwrite_existing);
  ExpectRefused(model, "is no 4-bit code under its scales");
}

TEST_F(ImportTest, RefusesCompressedTensorsWithoutAnExactForm) {
  const std::string model = Copy("compressed-tensors");
  const auto group = [](Json& json) -> Json& {
    return json["quantization_config"]["config_groups"]["group_0"];
  };
  EditConfig(model, [&](Json& json) { group(json)["weights"]["num_bits"] = 8; });
  ExpectRefused(model, "not 4-bit integers");
  EditConfig(model, [&](Json& json) {
    group(json)["weights"]["num_bits"] = 4;
    group(json)["weights"]["strategy"] = "group";
    group(json)["weights"]["group_size"] = 64;
  });
  ExpectRefused(model, "groups of 128");
  EditConfig(model, [&](Json& json) {
    group(json)["weights"]["strategy"] = "channel";
    group(json)["input_activations"] = nullptr;
  });
  ExpectRefused(model, "weights only");
  EditConfig(model, [&](Json& json) {
    group(json)["input_activations"] = {
        {"num_bits", 8}, {"dynamic", false}, {"strategy", "tensor"}};
  });
  ExpectRefused(model, "dynamic and by token");
  EditConfig(model, [&](Json& json) {
    json["quantization_config"]["transform_config"] = {{"config_groups", Json::object()}};
  });
  ExpectRefused(model, "transform_config");
}

TEST_F(ImportTest, LeavesNothingBehindWhenInterrupted) {
  const std::atomic<bool> interrupted = true;
  ImportOptions options;
  options.interrupted = &interrupted;
  EXPECT_TRUE(absl::IsCancelled(Import(Fixture("packed-gchn-prescale"), options)));
  EXPECT_TRUE(fs::is_empty(directory_.path()));
  WriteTextFile(directory_ / "output", "a file");
  EXPECT_TRUE(absl::IsAlreadyExists(Import(Fixture("packed-gchn-prescale"))));
}

TEST(ImportFlags, NameTheirValues) {
  EXPECT_EQ(*ParseImportFormat("compressed-tensors"), ImportFormat::kCompressedTensors);
  EXPECT_EQ(*ParseColumnOrder("deepcompressor"), ColumnOrder::kDeepCompressor);
  EXPECT_EQ(*ParseNormGains("keep"), NormGains::kKeep);
  ExpectError(ParseColumnOrder("x").status(), absl::StatusCode::kInvalidArgument,
              "auto, qserve, deepcompressor");
}

}  // namespace
}  // namespace qserve::quantizer
