// Broken files, bad bytes, templates without end and random input: each gives a status, and the
// process goes on.
#include <random>

#include "gtest/gtest.h"
#include "tests/unit/worker/text/text_fixture.h"
#include "worker/text/chat_template.h"
#include "worker/text/stream_decoder.h"
#include "worker/text/tokenizer.h"

namespace qserve::worker::text {
namespace {

using Ids = std::vector<int32_t>;

absl::Status LoadStatus(const std::map<std::string, std::string>& files) {
  const ModelDir dir(files);
  return Tokenizer::Load(dir.path()).status();
}

TEST(HostileTokenizerFileTest, MissingFileIsNotFound) {
  EXPECT_EQ(LoadStatus({}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load("/no/such/directory").status().code(), absl::StatusCode::kNotFound);
}

TEST(HostileTokenizerFileTest, MalformedFilesAreRefused) {
  const std::string nested = std::string(100000, '[');
  std::string sequence = "null";
  for (int depth = 0; depth < 5000; ++depth)
    sequence = R"({"type":"Sequence","normalizers":[)" + sequence + "]}";
  const std::string whole = ModelFiles("llama3")["tokenizer.json"];
  const std::vector<std::string> bad = {
      "",
      "{}",
      "null",
      "[]",
      "\xff\xfe",
      nested,
      whole.substr(0, whole.size() / 2),
      whole + "}",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"Nonsense"}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"Unigram","unk_id":7,"vocab":[["a",0.0]]}})",
      R"({"version":"1.0","added_tokens":[],"normalizer":)" + sequence +
          R"(,"model":{"type":"BPE","vocab":{"a":0},"merges":[]}})",
      R"({"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(("},)"
      R"("behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}})",
  };
  for (const std::string& json : bad) {
    const absl::Status status = LoadStatus({{"tokenizer.json", json}});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << json.substr(0, 120) << ": " << status;
    EXPECT_LT(status.message().size(), 4096u);
  }
}

TEST(HostileTokenizerFileTest, MalformedConfigIsRefused) {
  auto files = ModelFiles("llama3");
  std::string nested(5000, '[');
  for (const std::string& config :
       {std::string("["), std::string("[]"), std::string("\xff"), "{\"a\":" + nested,
        "{\"a\":" + nested + std::string(5000, ']') + "}", std::string(9 << 20, ' ')}) {
    files["tokenizer_config.json"] = config;
    EXPECT_FALSE(LoadStatus(files).ok()) << config.substr(0, 40);
  }
}

// Cutting a byte anywhere, or changing one, gives a tokenizer or a status.
TEST(HostileTokenizerFileTest, MutatedFilesDoNotCrash) {
  std::mt19937 random(7);
  for (const char* name : {"llama3", "metaspace"}) {
    auto files = ModelFiles(name);
    const std::string whole = files["tokenizer.json"];
    for (int round = 0; round < 150; ++round) {
      std::string json = whole;
      // Near the ends, where everything but the vocabulary is.
      const size_t offset = random() % 1500;
      const size_t at = random() % 2 == 0 ? offset : json.size() - 1 - offset;
      if (random() % 2 == 0) {
        json[at] = static_cast<char>(random() % 256);
      } else {
        json.erase(at, 1 + random() % 20);
      }
      files["tokenizer.json"] = json;
      const ModelDir dir(files);
      const auto tokenizer = Tokenizer::Load(dir.path());
      if (!tokenizer.ok()) continue;
      const auto ids = (*tokenizer)->Encode("Hello <s>, <|eot_id|> wörld!\n 今天");
      if (ids.ok()) static_cast<void>((*tokenizer)->Decode(*ids, false).ok());
    }
  }
}

// Files that the underlying library panics on, at load and at use: no panic crosses into C++, and
// other handles go on.
TEST(HostileTokenizerFileTest, PanicsBecomeAStatus) {
  const std::string model = R"("model":{"type":"BPE","vocab":{"a":0},"merges":[]}})";
  const std::string head = R"({"version":"1.0","added_tokens":[],)";
  const absl::Status at_load = LoadStatus(
      {{"tokenizer.json",
        head + R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},)" + model}});
  EXPECT_EQ(at_load.code(), absl::StatusCode::kInternal) << at_load;
  const std::string bad_at_use[] = {
      R"("pre_tokenizer":{"type":"FixedLength","length":0},)",
      R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"X","type_id":0}}],)"
      R"("pair":[],"special_tokens":{}},)",
  };
  for (const std::string& part : bad_at_use) {
    const ModelDir dir({{"tokenizer.json", head + part + model}});
    const auto tokenizer = Tokenizer::Load(dir.path());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (int repeat = 0; repeat < 3; ++repeat) {
      const absl::Status status = (*tokenizer)->Encode("a").status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
      EXPECT_EQ(status.message().find("/."), std::string::npos)
          << "a path of the build: " << status;
    }
    EXPECT_EQ((*tokenizer)->Decode(Ids{0}, true).value(), "a");
  }
  EXPECT_TRUE(LoadGoldenTokenizer("qwen")->Encode("Hello").ok());
}

// A post-processor that names an id without a token, and a model without unknown token: errors at
// use.
TEST(HostileTokenizerFileTest, TroubleAtUseIsAStatus) {
  const std::string json =
      R"({"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"[UNK]"}})";
  const ModelDir dir({{"tokenizer.json", json}});
  const auto tokenizer = Tokenizer::Load(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("a").value(), Ids{0});
  EXPECT_EQ((*tokenizer)->Encode("b").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HostileTextTest, BytesThatAreNotUtf8AreRefused) {
  const auto tokenizer = LoadGoldenTokenizer("qwen");
  const auto chat_template = LoadTemplate("qwen", "{{ messages[0].content }}").value();
  for (const std::string bad :
       {"\xff", "a\xc3", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xc0\x80", "ok \x80 ok"}) {
    ASSERT_FALSE(IsUtf8(bad));
    for (const bool parse_special : {true, false}) {
      const absl::Status status = tokenizer->Encode(bad, {.parse_special = parse_special}).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    }
    const std::vector<ChatMessage> messages = {{"user", bad}};
    EXPECT_EQ(chat_template->Render(messages, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(chat_template->RenderAndTokenize(*tokenizer, messages, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(
        chat_template->Render({}, {.variables_json = "{\"a\": \"" + bad + "\"}"}).status().code(),
        absl::StatusCode::kInvalidArgument);
  }
}

TEST(HostileTextTest, HugeTextIsRefusedAndLargeTextIsNot) {
  const auto chat_template = LoadTemplate("llama3", "{{ messages[0].content }}").value();
  const std::string huge(kDefaultMaxTextBytes + 1, 'a');
  const std::vector<ChatMessage> messages = {{"user", huge}};
  EXPECT_EQ(chat_template->Render(messages, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const std::string& name : GoldenNames()) {
    SCOPED_TRACE(name);
    const auto tokenizer = LoadGoldenTokenizer(name);
    EXPECT_EQ(tokenizer->Encode(huge).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(tokenizer->Encode("abc", {.max_bytes = 2}).status().code(),
              absl::StatusCode::kInvalidArgument);
    for (const char filler : {'a', ' ', '\n', '<'}) {
      const std::string large(size_t{1} << 18, filler);
      const auto ids =
          tokenizer->Encode(large, {.add_special_tokens = false, .parse_special = false});
      ASSERT_TRUE(ids.ok()) << ids.status();
      // Tokenizers that prepend a space to a text take one off again, be it the text's own.
      const std::string decoded = tokenizer->Decode(*ids, true).value();
      EXPECT_TRUE(decoded == large || (filler == ' ' && decoded == large.substr(1)))
          << decoded.size();
    }
  }
}

TEST(HostileTextTest, IdsWithoutATokenAreRefused) {
  for (const std::string& name : GoldenNames()) {
    const auto tokenizer = LoadGoldenTokenizer(name);
    for (const int32_t id : {-1, INT32_MIN, INT32_MAX, tokenizer->vocab_size()}) {
      EXPECT_EQ(tokenizer->Decode(Ids{0, id}, true).status().code(),
                absl::StatusCode::kInvalidArgument)
          << id;
      EXPECT_FALSE(tokenizer->IdToToken(id).has_value());
    }
  }
}

TEST(HostileTemplateTest, BrokenTemplatesAreRefusedAtLoad) {
  for (const char* source : {"{% for %}", "{{", "{% if x %}", "{{ 1 + }}", "{% endfor %}",
                             "{{ x | no_such_filter( }}"}) {
    const absl::Status status = LoadTemplate("qwen", source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << source << ": " << status;
  }
  const std::string deep = std::string(100000, '(') + "1" + std::string(100000, ')');
  EXPECT_EQ(LoadTemplate("qwen", "{{ " + deep + " }}").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadTemplate("qwen", std::string((1 << 20) + 1, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(HostileTemplateTest, WorkWithoutEndIsStopped) {
  const std::vector<std::string> sources = {
      "{% for i in range(10**9) %}{% endfor %}",
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
      "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
      "{% macro f(n) %}{{ g(n) }}{% endmacro %}{% macro g(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}",
      "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
      "{% include 'chat_template' %}",
      "{% extends 'chat_template' %}",
      "{{ 'x' * 10**9 }}",
      "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
      "{{ strftime_now('%c' * 1000) }}",
      "{{ messages | tojson(indent=1000000) }}",
      "{{ messages[0].no_such_field.deeper }}",
      "{{ no_such_function() }}",
  };
  const std::vector<ChatMessage> messages = {{"user", "some content"}};
  for (const std::string& source : sources) {
    const auto chat_template = LoadTemplate("qwen", source);
    if (!chat_template.ok()) continue;
    const absl::Status status = (*chat_template)->Render(messages, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << source << ": " << status;
    EXPECT_LT(status.message().size(), 4096u);
  }
}

TEST(HostileTemplateTest, BadVariablesAreRefused) {
  const auto chat_template = LoadTemplate("qwen", "{{ a | tojson }}").value();
  const std::string nested = std::string(10000, '[') + std::string(10000, ']');
  for (const std::string& variables :
       {std::string("["), std::string("[]"), std::string("{"), "{\"a\": " + nested + "}"}) {
    EXPECT_EQ(chat_template->Render({}, {.variables_json = variables}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << variables.substr(0, 20);
  }
}

TEST(RandomInputTest, AnyBytesGiveIdsOrAStatus) {
  std::mt19937 random(99);
  const std::vector<std::string> pieces = {
      "<|im_end|>", "<s>",          "</s>",       "<|eot_id|>", "a",      " ",  "\n", "\xff",
      "\xf0\x9f",   "\xe4\xbb\x8a", "\U000F0000", "\xcc\x81",   "\u2581", "{{", "\0x"};
  for (const std::string& name : GoldenNames()) {
    const auto tokenizer = LoadGoldenTokenizer(name);
    const std::string source = Golden(name)["templates"].begin()->get<std::string>();
    const auto chat_template = LoadTemplate(name, source).value();
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (size_t i = random() % 12; i > 0; --i) {
        text += random() % 8 == 0 ? std::string(1, static_cast<char>(random() % 256))
                                  : pieces[random() % pieces.size()];
      }
      const bool valid = IsUtf8(text);
      for (const bool parse_special : {true, false}) {
        const auto ids = tokenizer->Encode(text, {.parse_special = parse_special});
        EXPECT_EQ(ids.ok(), valid) << ids.status();
        const std::string decoded = ids.ok() ? tokenizer->Decode(*ids, parse_special).value() : "";
        EXPECT_TRUE(IsUtf8(decoded));
      }
      const std::vector<ChatMessage> messages = {{"user", text}};
      EXPECT_EQ(chat_template->RenderAndTokenize(*tokenizer, messages, {}).ok(), valid);
    }
  }
}

}  // namespace
}  // namespace qserve::worker::text
