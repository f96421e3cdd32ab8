// config.json of every family in the forms of transformers 4 and 5, and everything that must be
// refused.
#include "worker/checkpoint/model_config.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::worker::checkpoint {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Json Llama() {
  return Json::parse(
      R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "rope_theta": 500000.0, "rope_scaling": null, "tie_word_embeddings": true, "bos_token_id": 1,
    "eos_token_id": [2, 5], "torch_dtype": "bfloat16"})");
}

Json Family(const char* architecture, const char* model_type) {
  Json config = Llama();
  config["architectures"] = {architecture};
  config["model_type"] = model_type;
  return config;
}
Json Mistral() { return Family("MistralForCausalLM", "mistral"); }
Json Qwen2() { return Family("Qwen2ForCausalLM", "qwen2"); }
Json Qwen3() { return Family("Qwen3ForCausalLM", "qwen3"); }

ModelConfig Parsed(const Json& config, const std::string& generation = "") {
  absl::StatusOr<ModelConfig> result = ParseModelConfig(config.dump(), generation);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ModelConfig();
}

void ExpectRefused(const Json& config, const std::string& text) {
  ::qserve::testing::ExpectError(ParseModelConfig(config.dump(), "").status(),
                                 absl::StatusCode::kInvalidArgument, text);
}

TEST(ModelConfig, ReadsLlamaAsTransformers4WritesIt) {
  const ModelConfig config = Parsed(Llama());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.intermediate_size, 160);
  EXPECT_EQ(config.layers, 4);
  EXPECT_EQ(config.heads, 4);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.vocab_size, 512);
  EXPECT_EQ(config.max_position_embeddings, 4096);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias || config.attention_out_bias || config.mlp_bias ||
               config.qk_norm);
  EXPECT_THAT(config.sliding_window, ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.float_type, kernels::FloatType::kBf16);
  EXPECT_EQ(config.scheme, Scheme::kFloat);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 5));
  EXPECT_EQ(config.bos_token_id, 1);
}

TEST(ModelConfig, Transformers5FormMeansTheSame) {
  Json config = Llama();
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config.erase("torch_dtype");
  config["dtype"] = "bfloat16";
  config["rope_parameters"] = {
      {"rope_theta", 500000.0},  {"rope_type", "llama3"},
      {"factor", 8.0},           {"low_freq_factor", 1.0},
      {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 2048}};
  const ModelConfig five = Parsed(config);
  Json four_json = Llama();
  four_json["rope_scaling"] = {{"type", "llama3"},
                               {"factor", 8.0},
                               {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0},
                               {"original_max_position_embeddings", 2048}};
  const ModelConfig four = Parsed(four_json);
  for (const ModelConfig& parsed : {four, five}) {
    EXPECT_EQ(parsed.rope.type, RopeType::kLlama3);
    EXPECT_EQ(parsed.rope.theta, 500000.0);
    EXPECT_EQ(parsed.rope.factor, 8.0);
    EXPECT_EQ(parsed.rope.low_freq_factor, 1.0);
    EXPECT_EQ(parsed.rope.high_freq_factor, 4.0);
    EXPECT_EQ(parsed.rope.original_max_position_embeddings, 2048);
    EXPECT_EQ(parsed.float_type, kernels::FloatType::kBf16);
  }
}

TEST(ModelConfig, DefaultsOfAbsentAndNullMembers) {
  Json config = Llama();
  for (const char* key : {"num_key_value_heads", "rope_theta", "tie_word_embeddings", "torch_dtype",
                          "hidden_act", "eos_token_id", "bos_token_id"}) {
    config.erase(key);
  }
  config["head_dim"] = nullptr;
  const ModelConfig parsed = Parsed(config);
  EXPECT_EQ(parsed.kv_heads, 4);
  EXPECT_EQ(parsed.head_dim, 16);
  EXPECT_EQ(parsed.rope.theta, 10000.0);
  EXPECT_FALSE(parsed.tie_word_embeddings);
  EXPECT_EQ(parsed.float_type, kernels::FloatType::kF32);
  EXPECT_TRUE(parsed.eos_token_ids.empty());
  EXPECT_FALSE(parsed.bos_token_id.has_value());
}

TEST(ModelConfig, BiasesAndNormsOfTheFamilies) {
  Json llama = Llama();
  llama["attention_bias"] = true;
  llama["mlp_bias"] = true;
  EXPECT_TRUE(Parsed(llama).attention_bias && Parsed(llama).attention_out_bias &&
              Parsed(llama).mlp_bias);
  Json qwen2 = Qwen2();
  qwen2["attention_bias"] = false;  // has no say: the projections of Qwen2 always have one
  EXPECT_TRUE(Parsed(qwen2).attention_bias);
  EXPECT_FALSE(Parsed(qwen2).attention_out_bias || Parsed(qwen2).qk_norm);
  Json qwen3 = Qwen3();
  qwen3["head_dim"] = 32;
  EXPECT_TRUE(Parsed(qwen3).qk_norm);
  EXPECT_FALSE(Parsed(qwen3).attention_bias);
  EXPECT_EQ(Parsed(qwen3).head_dim, 32);
  Json mistral = Mistral();
  mistral["attention_bias"] = true;  // transformers has none there either
  EXPECT_FALSE(Parsed(mistral).attention_bias);
}

TEST(ModelConfig, SlidingWindows) {
  Json mistral = Mistral();
  EXPECT_THAT(Parsed(mistral).sliding_window, ElementsAre(4096, 4096, 4096, 4096));
  mistral["sliding_window"] = 100;
  EXPECT_THAT(Parsed(mistral).sliding_window, ElementsAre(100, 100, 100, 100));
  mistral["sliding_window"] = nullptr;
  EXPECT_THAT(Parsed(mistral).sliding_window, ElementsAre(0, 0, 0, 0));
  Json llama = Llama();
  llama["sliding_window"] = 100;
  EXPECT_THAT(Parsed(llama).sliding_window, ElementsAre(0, 0, 0, 0));
  Json qwen = Qwen2();
  qwen["sliding_window"] = 100;
  qwen["max_window_layers"] = 3;
  EXPECT_THAT(Parsed(qwen).sliding_window, ElementsAre(0, 0, 0, 0));
  qwen["use_sliding_window"] = true;
  EXPECT_THAT(Parsed(qwen).sliding_window, ElementsAre(0, 0, 0, 100));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                         "full_attention"};
  EXPECT_THAT(Parsed(qwen).sliding_window, ElementsAre(100, 0, 100, 0));
  qwen["use_sliding_window"] = false;
  ExpectRefused(qwen, "no sliding window is in effect");
  qwen["layer_types"] = {"full_attention"};
  ExpectRefused(qwen, "one entry a layer");
  qwen["layer_types"] = {"full_attention", "full_attention", "chunked_attention", "full_attention"};
  ExpectRefused(qwen, "chunked_attention");
}

TEST(ModelConfig, RopeTypes) {
  Json config = Llama();
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  EXPECT_EQ(Parsed(config).rope.type, RopeType::kLinear);
  EXPECT_EQ(Parsed(config).rope.factor, 2.5);
  config["rope_scaling"] = {{"rope_type", "yarn"},
                            {"factor", 4.0},
                            {"original_max_position_embeddings", 1024},
                            {"truncate", false},
                            {"mscale", 0.7}};
  const RopeConfig yarn = Parsed(config).rope;
  EXPECT_EQ(yarn.type, RopeType::kYarn);
  EXPECT_EQ(yarn.factor, 4.0);
  EXPECT_EQ(yarn.original_max_position_embeddings, 1024);
  EXPECT_EQ(yarn.beta_fast, 32.0);
  EXPECT_EQ(yarn.beta_slow, 1.0);
  EXPECT_EQ(yarn.mscale, 0.7);
  EXPECT_FALSE(yarn.truncate);
  EXPECT_FALSE(yarn.attention_factor.has_value());
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}};
  EXPECT_EQ(Parsed(config).rope.original_max_position_embeddings, 4096);
  config["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(Parsed(config).rope.type, RopeType::kDefault);
  for (const char* type : {"dynamic", "longrope", "su", "mrope", ""}) {
    config["rope_scaling"] = {{"rope_type", type}, {"factor", 2.0}};
    ExpectRefused(config, "supported are default, linear, llama3, yarn");
  }
}

TEST(ModelConfig, RopeParametersPerLayerType) {
  Json config = Qwen3();
  config.erase("rope_theta");
  config["use_sliding_window"] = true;
  config["layer_types"] = {"full_attention", "sliding_attention", "full_attention",
                           "full_attention"};
  const Json flat = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  config["rope_parameters"] = {{"full_attention", flat}, {"sliding_attention", flat}};
  EXPECT_EQ(Parsed(config).rope.theta, 1e6);
  config["rope_parameters"]["sliding_attention"]["rope_theta"] = 1e4;
  ExpectRefused(config, "differ between layer types");
  config["rope_parameters"].erase("sliding_attention");
  ExpectRefused(config, "sliding_attention must be an object");
}

TEST(ModelConfig, QuantizationConfig) {
  Json config = Llama();
  config["quantization_config"] = {{"quant_method", "qoq"}, {"wbits", 4}, {"group_size", 128}};
  EXPECT_EQ(Parsed(config).scheme, Scheme::kQoqGroup128);
  EXPECT_FALSE(Parsed(config).kv_bits.has_value());
  config["quantization_config"]["group_size"] = -1;
  config["quantization_config"]["kv_bits"] = 8;
  config["quantization_config"]["lm_head_bits"] = 16;
  config["quantization_config"]["layer_kv_bits"] = {4, 8, 16, 4};
  const ModelConfig parsed = Parsed(config);
  EXPECT_EQ(parsed.scheme, Scheme::kQoqPerChannel);
  EXPECT_EQ(parsed.kv_bits, 8);
  EXPECT_EQ(parsed.lm_head_bits, 16);
  EXPECT_THAT(parsed.layer_kv_bits, ElementsAre(4, 8, 16, 4));
  const auto with = [&](const char* key, const Json& value) {
    Json changed = config;
    changed["quantization_config"][key] = value;
    return changed;
  };
  ExpectRefused(with("quant_method", "awq"), "\"awq\" is not supported; supported are qoq");
  ExpectRefused(with("quant_method", nullptr), "supported are qoq");
  ExpectRefused(with("group_size", 64), "group_size");
  ExpectRefused(with("group_size", nullptr), "group_size is missing");
  ExpectRefused(with("wbits", 8), "wbits");
  ExpectRefused(with("kv_bits", 3), "kv_bits");
  ExpectRefused(with("layer_kv_bits", {4, 4}), "one entry a layer");
  ExpectRefused(with("layer_kv_bits", {4, 4, 5, 4}), "layer_kv_bits");
  ExpectRefused(with("lm_head_bits", 2), "lm_head_bits");
}

TEST(ModelConfig, RefusesWhatItDoesNotKnow) {
  ExpectRefused(
      Family("GPT2LMHeadModel", "gpt2"),
      "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM");
  Json mixtral = Family("MixtralForCausalLM", "mixtral");
  mixtral["num_local_experts"] = 8;
  ExpectRefused(mixtral, "mixture of experts");
  Json gelu = Llama();
  gelu["hidden_act"] = "gelu";
  ExpectRefused(gelu, "supported is silu");
  Json dtype = Llama();
  dtype["dtype"] = "float8_e4m3fn";
  ExpectRefused(dtype, "supported are float32, float16, bfloat16");
  Json partial = Llama();
  partial["partial_rotary_factor"] = 0.5;
  ExpectRefused(partial, "partial_rotary_factor");
}

TEST(ModelConfig, RefusesEverySizeOutOfRange) {
  const Json wrong[] = {0, -1, 1.5, "64", Json::array(), int64_t{1} << 40, uint64_t{1} << 63, true};
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "max_position_embeddings", "head_dim"}) {
    for (const Json& value : wrong) {
      Json config = Llama();
      config[key] = value;
      SCOPED_TRACE(config.dump());
      ExpectRefused(config, key);
    }
  }
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size"}) {
    Json config = Llama();
    config.erase(key);
    ExpectRefused(config, std::string(key) + " is missing");
  }
  Json config = Llama();
  config["num_key_value_heads"] = 3;
  ExpectRefused(config, "must be a multiple of num_key_value_heads");
  config = Llama();
  config["hidden_size"] = 66;
  ExpectRefused(config, "must be a multiple of num_attention_heads");
  config = Llama();
  config["head_dim"] = 15;
  ExpectRefused(config, "even");
  config = Llama();
  config["eos_token_id"] = 512;
  ExpectRefused(config, "eos_token_id");
  config = Llama();
  config["rms_norm_eps"] = -1.0;
  ExpectRefused(config, "rms_norm_eps");
}

TEST(ModelConfig, RefusesHostileJson) {
  const auto refused = [](const std::string& text, const std::string& why) {
    ::qserve::testing::ExpectError(ParseModelConfig(text, "").status(),
                                   absl::StatusCode::kInvalidArgument, why);
  };
  refused("", "not JSON");
  refused("[]", "object is expected");
  refused("{\"a\": 1, \"a\": 2}", "twice");
  refused(std::string(100000, '['), "deeper than");
  refused("{\"a\": " + std::string(100000, '['), "deeper than");
  refused(Llama().dump() + "x", "not JSON");
  refused("{\"architectures\": [\"\xff\"]}", "not JSON");
  Json odd = Llama();
  odd["architectures"] = {"Evil\x1b[31m" + std::string(10000, 'x')};
  const absl::Status status = ParseModelConfig(odd.dump(), "").status();
  EXPECT_LT(status.message().size(), 500u);
  EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("\x1b")));
}

TEST(GenerationConfig, AddsEndTokensAndDefaults) {
  const ModelConfig config = Parsed(Llama(), R"({"eos_token_id": [9, 2], "bos_token_id": 3})");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 5, 9));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_FALSE(ParseModelConfig(Llama().dump(), R"({"eos_token_id": 512})").ok());
}

TEST(GenerationConfig, IsReadFromTheDirectory) {
  const ::qserve::testing::TemporaryDirectory directory;
  EXPECT_FALSE(ReadGenerationDefaults(directory.path())->temperature.has_value());
  const auto read = [&](const std::string& text) {
    ::qserve::testing::WriteTextFile(directory / "generation_config.json", text);
    return ReadGenerationDefaults(directory.path());
  };
  const GenerationDefaults all =
      *read(R"({"do_sample": true, "temperature": 0.5, "top_p": 0.9, "top_k": 20,
                                           "min_p": 0.1, "repetition_penalty": 1.5})");
  EXPECT_EQ(all.temperature, 0.5f);
  EXPECT_EQ(all.top_p, 0.9f);
  EXPECT_EQ(all.top_k, 20);
  EXPECT_EQ(all.min_p, 0.1f);
  EXPECT_EQ(all.repetition_penalty, 1.5f);
  EXPECT_EQ(read(R"({"do_sample": false, "temperature": 0.5})")->temperature, 0.0f);
  EXPECT_EQ(read(R"({"top_k": -1})")->top_k, 0);
  for (const char* wrong :
       {R"({"temperature": -1})", R"({"top_p": 0})", R"({"top_p": 1.5})", R"({"top_k": 1.5})",
        R"({"repetition_penalty": 0})", R"({"do_sample": 1})", "{"}) {
    EXPECT_EQ(read(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace qserve::worker::checkpoint
