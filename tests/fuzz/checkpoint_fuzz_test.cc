// The fuzz targets of worker/checkpoint on mutations of valid inputs, the same ones in every run: a
// few seconds in place of hours.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <span>
#include <string>

#include "tests/fuzz/checkpoint_targets.h"
#include "worker/checkpoint/torch_file.h"
#include "worker/checkpoint/zip_directory.h"

namespace qserve::fuzz {
namespace {

constexpr int kRounds = 20000;

// Bytes flipped, cut, repeated and replaced by what means something in JSON and in numbers.
std::string Mutate(std::string input, std::mt19937& random) {
  static constexpr const char* kPieces[] = {
      "null", "-1", "0",       "1e308", "18446744073709551615", "\"\"", "[]",  "{}", "[[[[[",
      "{",    "\\", "\\u0000", "true",  "4294967296",           ",",    "\xff"};
  for (auto change = 1 + random() % 3; change > 0; --change) {
    const size_t at = random() % (input.size() + 1);
    const size_t length = std::min<size_t>(random() % 12, input.size() - at);
    switch (random() % 5) {
      case 0:
        input.erase(at, length);
        break;
      case 1:
        input.insert(at, input.substr(random() % (input.size() + 1), random() % 24));
        break;
      case 2:
        input.replace(at, length, kPieces[random() % std::size(kPieces)]);
        break;
      case 3:
        input.resize(at);
        break;
      default:
        if (at < input.size()) input[at] = static_cast<char>(random());
    }
  }
  return input;
}

void RunMutations(const std::string& seed, void (*target)(std::span<const uint8_t>)) {
  std::mt19937 random(7);
  const auto call = [&](const std::string& input) {
    target({reinterpret_cast<const uint8_t*>(input.data()), input.size()});
  };
  call(seed);
  for (int round = 0; round < kRounds; ++round) call(Mutate(seed, random));
}

TEST(CheckpointFuzz, Safetensors) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("b":{"dtype":"I8","shape":[3],"data_offsets":[16,19]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  RunMutations(file + header + std::string(19, 'x'), FuzzSafetensors);
}

TEST(CheckpointFuzz, ModelConfig) {
  const std::string config =
      R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,)"
      R"("num_attention_heads":4,"num_key_value_heads":2,"vocab_size":512,"head_dim":16,"use_sliding_window":true,)"
      R"("layer_types":["full_attention","sliding_attention"],"sliding_window":32,"dtype":"bfloat16","rope_parameters":)"
      R"({"rope_type":"yarn","rope_theta":1e6,"factor":4.0,"original_max_position_embeddings":2048},"eos_token_id":[1,2],)"
      R"("quantization_config":{"quant_method":"qoq","wbits":4,"group_size":128,"layer_kv_bits":[4,8]}})";
  const std::string generation =
      R"({"eos_token_id":[3],"temperature":0.5,"top_p":0.9,"top_k":20,"do_sample":true})";
  RunMutations(config + std::string(1, '\0') + generation, FuzzModelConfig);
}

std::string ReadFixture(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(CheckpointFuzz, TorchFile) {
  const std::string file =
      ReadFixture("tests/golden/import/deepcompressor-gchn-prescale.scale.bin");
  ASSERT_TRUE(worker::checkpoint::ParseTorchFile(std::as_bytes(std::span(file))).ok());
  RunMutations(file, FuzzTorchFile);
}

TEST(CheckpointFuzz, PickledState) {
  const std::string file =
      ReadFixture("tests/golden/import/deepcompressor-gchn-prescale.scale.bin");
  const auto entries = worker::checkpoint::ReadZipDirectory(std::as_bytes(std::span(file)));
  ASSERT_TRUE(entries.ok()) << entries.status();
  for (const worker::checkpoint::ZipEntry& entry : *entries) {
    if (entry.name.ends_with("data.pkl"))
      RunMutations(file.substr(entry.begin, entry.size), FuzzPickledState);
  }
}

TEST(CheckpointFuzz, PackedWeight) {
  std::string data(32 * 128 / 2, '\x37');
  for (int i = 0; i < 32; ++i) data += std::string("\x00\x3c", 2);  // scales of 1
  data += std::string(32, '\x02') + std::string(32, '\xf0');
  RunMutations(data, FuzzPackedWeight);
}

}  // namespace
}  // namespace qserve::fuzz
