// StreamDecoder: deltas as Python's DecodeStream gives them, whole characters only, the same text
// as Decode whatever the cut.
#include "worker/text/stream_decoder.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/unit/worker/text/text_fixture.h"

namespace qserve::worker::text {
namespace {

using Ids = std::vector<int32_t>;

class StreamDecoderTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    golden_ = Golden(GetParam());
    tokenizer_ = LoadGoldenTokenizer(GetParam());
    ASSERT_NE(tokenizer_, nullptr);
  }

  // All deltas, the flushed one last. Each is checked to be whole characters.
  std::vector<std::string> Stream(std::span<const int32_t> prompt, std::span<const int32_t> ids,
                                  bool skip) const {
    StreamDecoder decoder(*tokenizer_, prompt, {.skip_special_tokens = skip});
    std::vector<std::string> deltas;
    for (const int32_t id : ids) deltas.push_back(decoder.Push(id).value());
    deltas.push_back(decoder.Flush().value());
    for (const std::string& delta : deltas) EXPECT_TRUE(IsUtf8(delta));
    return deltas;
  }

  std::string Joined(std::span<const int32_t> prompt, std::span<const int32_t> ids,
                     bool skip) const {
    std::string text;
    for (const std::string& delta : Stream(prompt, ids, skip)) text += delta;
    return text;
  }

  Ids RandomIds(std::mt19937& random, size_t count) const {
    Ids ids(count);
    for (int32_t& id : ids)
      id = static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer_->vocab_size()));
    return ids;
  }

  nlohmann::ordered_json golden_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

// The reference holds back all text while the last character is unfinished, StreamDecoder that
// character alone: it must never be later than the reference, and must be level with it at the end.
TEST_P(StreamDecoderTest, IsNeverLaterThanTheReference) {
  int compared = 0;
  for (const nlohmann::ordered_json& entry : golden_["texts"]) {
    SCOPED_TRACE(entry["text"].dump());
    for (const bool skip : {true, false}) {
      const nlohmann::ordered_json& expected = entry[skip ? "deltas" : "deltas_with_special"];
      if (expected.is_null()) continue;
      const std::vector<std::string> deltas = Stream({}, entry["ids"].get<Ids>(), skip);
      ASSERT_EQ(deltas.size(), expected.size() + 1);
      EXPECT_EQ(deltas.back(), "") << "the reference has nothing left";
      std::string ours;
      std::string reference;
      for (size_t push = 0; push < expected.size(); ++push) {
        ours += deltas[push];
        reference += expected[push].is_null() ? "" : expected[push].get<std::string>();
        EXPECT_TRUE(ours.starts_with(reference)) << ours << " at " << push;
      }
      EXPECT_EQ(ours, reference);
      ++compared;
    }
  }
  EXPECT_GT(compared, 40);
}

TEST_P(StreamDecoderTest, AddsUpToTheDecodedTextAfterAnyPrompt) {
  for (const nlohmann::ordered_json& entry : golden_["texts"]) {
    SCOPED_TRACE(entry["text"].dump());
    const Ids ids = entry["ids"].get<Ids>();
    for (const bool skip : {true, false}) {
      const std::string whole = tokenizer_->Decode(ids, skip).value();
      EXPECT_EQ(Joined({}, ids, skip), whole);
      for (size_t cut = 0; cut <= ids.size(); ++cut) {
        const std::span prompt = std::span(ids).first(cut);
        const std::string before = tokenizer_->Decode(prompt, skip).value();
        // A prompt that ends inside a character leaves its finishing to the stream.
        const std::string stable = before.substr(0, before.find("\xEF\xBF\xBD"));
        if (stable != before || whole.find("\xEF\xBF\xBD") != std::string::npos) continue;
        EXPECT_EQ(before + Joined(prompt, std::span(ids).subspan(cut), skip), whole)
            << "cut at " << cut;
      }
    }
  }
}

TEST_P(StreamDecoderTest, FinishesACharacterThatThePromptBegan) {
  const Ids ids = tokenizer_->Encode("\U0001F9D9", {.add_special_tokens = false}).value();
  ASSERT_GE(ids.size(), 3u) << "the character must not be a token of its own";
  for (size_t cut = 1; cut < ids.size(); ++cut) {
    if (tokenizer_->Decode(std::span(ids).first(cut), true).value().find("\xEF\xBF\xBD") ==
        std::string::npos)
      continue;
    EXPECT_EQ(Joined(std::span(ids).first(cut), std::span(ids).subspan(cut), true), "\U0001F9D9")
        << cut;
  }
}

TEST_P(StreamDecoderTest, RandomIdsAddUpWhereTheySpellUtf8) {
  std::mt19937 random(1234);
  int whole_texts = 0;
  for (int round = 0; round < 400; ++round) {
    const Ids prompt = RandomIds(random, random() % 12);
    const Ids ids = RandomIds(random, 1 + random() % 24);
    for (const bool skip : {true, false}) {
      const std::string streamed = Joined(prompt, ids, skip);
      if (!prompt.empty()) continue;
      const std::string whole = tokenizer_->Decode(ids, skip).value();
      if (whole.find("\xEF\xBF\xBD") != std::string::npos) continue;
      EXPECT_EQ(streamed, whole);
      ++whole_texts;
    }
  }
  EXPECT_GT(whole_texts, 0);
}

TEST_P(StreamDecoderTest, BytesThatAreNotUtf8AreReplacedWithinABoundedWindow) {
  // A lead byte again and again: every prefix ends in what might be an unfinished character.
  const std::optional<int32_t> fallback = tokenizer_->TokenToId("<0xE4>");
  const std::optional<int32_t> byte_level = tokenizer_->TokenToId("\u00e4");
  const int32_t lead = fallback.value_or(byte_level.value_or(-1));
  ASSERT_GE(lead, 0);
  const Ids ids(1000, lead);
  const std::vector<std::string> deltas = Stream({}, ids, true);
  std::string text;
  for (size_t push = 0; push + 1 < deltas.size(); ++push) {
    text += deltas[push];
    // What is held back stays bounded too.
    EXPECT_GE(text.size() + 300 * 3, (push + 1) * 3) << push;
  }
  text += deltas.back();
  EXPECT_GE(text.size(), 990u * 3);
  EXPECT_EQ(text.find_first_not_of("\xEF\xBF\xBD"), std::string::npos);
}

TEST_P(StreamDecoderTest, RefusesUnknownIdsAndGoesOn) {
  StreamDecoder decoder(*tokenizer_, Ids{-5, tokenizer_->vocab_size() + 3});
  const Ids ids = tokenizer_->Encode("Hello, world!", {.add_special_tokens = false}).value();
  std::string text = decoder.Push(ids[0]).value();
  for (const int32_t id : {-1, tokenizer_->vocab_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(decoder.Push(id).status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (size_t i = 1; i < ids.size(); ++i) text += decoder.Push(ids[i]).value();
  EXPECT_EQ(text + decoder.Flush().value(), "Hello, world!");

  StreamDecoder lenient(*tokenizer_, {}, {.ignore_unknown_ids = true});
  EXPECT_EQ(lenient.Push(tokenizer_->vocab_size()).value(), "");
}

INSTANTIATE_TEST_SUITE_P(Styles, StreamDecoderTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& suite) { return suite.param; });

TEST(StreamDecoderByteFallbackTest, TextThatWasSentStands) {
  const auto tokenizer = LoadGoldenTokenizer("llama2");
  ASSERT_NE(tokenizer, nullptr);
  const auto byte = [&](const char* token) { return tokenizer->TokenToId(token).value(); };
  // Three bytes make a character, the fourth is none: decoded at once all four would be U+FFFD.
  StreamDecoder decoder(*tokenizer, tokenizer->Encode("Hello").value());
  EXPECT_EQ(decoder.Push(byte("<0xE9>")).value(), "");
  EXPECT_EQ(decoder.Push(byte("<0xBE>")).value(), "");
  EXPECT_EQ(decoder.Push(byte("<0x8D>")).value(), "\u9f8d");
  EXPECT_EQ(decoder.Push(byte("<0xFF>")).value(), "");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("\u2581the").value()).value(), "\uFFFD the");
  EXPECT_EQ(decoder.Push(byte("<0xE9>")).value(), "");
  EXPECT_EQ(decoder.Flush().value(), "\uFFFD");
}

}  // namespace
}  // namespace qserve::worker::text
