// Tokens to text: stop strings across tokens, hold-back, resumption, the end token. With the demo
// model's real tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/serve/candidate_output.h"

namespace qserve::worker::serve {
namespace {

using engine::FinishReason;
using engine::TokenEvent;

class CandidateOutputTest : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = text::Tokenizer::Load("deploy/demo-model");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    model_.tokenizer = *std::move(tokenizer);
    model_.vocab_size = 4096;
    model_.max_model_len = 1024;
  }

  std::vector<int32_t> Encode(const std::string& text) {
    return *model_.tokenizer->Encode(text, {.add_special_tokens = false});
  }

  static TokenEvent Event(int32_t id, FinishReason finish = FinishReason::kNone) {
    TokenEvent event;
    event.token.emplace().id = id;
    event.finish = finish;
    return event;
  }

  // Feeds `text` token by token, taking what is certain after each; returns the texts joined.
  std::string Stream(CandidateOutput& output, const std::string& text) {
    std::string streamed;
    for (const int32_t id : Encode(text)) {
      EXPECT_TRUE(output.Push(Event(id)).ok());
      streamed += output.Take().text;
    }
    return streamed;
  }

  ServedModel model_;
  OutputOptions options_;
};

TEST_F(CandidateOutputTest, StreamsTheTextThatTheTokensSpell) {
  CandidateOutput output(model_, options_, {}, {}, 0);
  const std::string text = "The quick brown fox, naïve café 漢字 🙂 jumps.";
  std::string streamed = Stream(output, text);
  TokenEvent last;
  last.finish = FinishReason::kLength;
  ASSERT_TRUE(output.Push(last).ok());
  const OutputDelta delta = output.Take();
  EXPECT_EQ(streamed + delta.text, text);
  EXPECT_EQ(delta.finish, FinishReason::kLength);
  EXPECT_EQ(output.output_tokens(), static_cast<int32_t>(Encode(text).size()));
}

TEST_F(CandidateOutputTest, StopStringAcrossTokensEndsWithoutIt) {
  options_.stop = {"function retu"};
  CandidateOutput output(model_, options_, {}, {}, 0);
  const std::string text = "Each function returns a value and more text follows here";
  std::string streamed;
  int pushed = 0;
  for (const int32_t id : Encode(text)) {
    ASSERT_TRUE(output.Push(Event(id)).ok());
    ++pushed;
    const OutputDelta delta = output.Take();
    streamed += delta.text;
    // Nothing that belongs to the match was ever shown.
    EXPECT_THAT(std::string("Each "), testing::StartsWith(streamed));
    if (delta.finish != FinishReason::kNone) {
      EXPECT_EQ(delta.matched_stop, "function retu");
      break;
    }
  }
  EXPECT_EQ(streamed, "Each ");
  EXPECT_TRUE(output.stop_matched());
  EXPECT_EQ(output.output_tokens(), pushed);
  // Tokens after the match are dropped from text and usage.
  ASSERT_TRUE(output.Push(Event(Encode(" more")[0])).ok());
  EXPECT_TRUE(output.Take().empty());
  EXPECT_EQ(output.output_tokens(), pushed);
}

TEST_F(CandidateOutputTest, HeldBackTextComesWhenItIsNoStop) {
  options_.stop = {"abcdefgh!"};
  CandidateOutput output(model_, options_, {}, {}, 0);
  const std::string text = "abcdefgh? and abcdefg";
  std::string streamed = Stream(output, text);
  EXPECT_NE(streamed, text);  // the end may still begin the stop string
  TokenEvent last;
  last.finish = FinishReason::kLength;
  ASSERT_TRUE(output.Push(last).ok());
  EXPECT_EQ(streamed + output.Take().text, text);
}

TEST_F(CandidateOutputTest, TheEarliestStopStringWins) {
  options_.stop = {"fox", "quick", "brown"};
  CandidateOutput output(model_, options_, {}, {}, 0);
  EXPECT_EQ(Stream(output, "The quick brown fox"), "The ");
}

TEST_F(CandidateOutputTest, TheEndTokenIsCountedButNotSpelled) {
  CandidateOutput output(model_, options_, {}, {}, 0);
  ASSERT_TRUE(output.Push(Event(Encode("Hello")[0])).ok());
  TokenEvent last = Event(1, FinishReason::kStop);
  last.matched_stop_id = 1;
  ASSERT_TRUE(output.Push(last).ok());
  const OutputDelta delta = output.Take();
  EXPECT_EQ(delta.matched_stop_id, 1);
  EXPECT_EQ(delta.tokens.size(), 2u);
  EXPECT_EQ(delta.text.find("end_of_text"), std::string::npos);
}

TEST_F(CandidateOutputTest, ResumesInTheMiddleOfTheText) {
  const std::string text = "The quick brown fox jumps over the lazy dog";
  const std::vector<int32_t> ids = Encode(text);
  const size_t half = ids.size() / 2;
  CandidateOutput first(model_, options_, {}, {}, 0);
  std::string sent;
  for (size_t i = 0; i < half; ++i) {
    ASSERT_TRUE(first.Push(Event(ids[i])).ok());
    sent += first.Take().text;
  }
  CandidateOutput second(model_, options_, {}, std::span(ids).first(half),
                         static_cast<int64_t>(sent.size()));
  EXPECT_TRUE(second.Take().empty());
  std::string rest;
  for (size_t i = half; i < ids.size(); ++i) {
    ASSERT_TRUE(second.Push(Event(ids[i])).ok());
    rest += second.Take().text;
  }
  EXPECT_EQ(sent + rest, text);
  EXPECT_EQ(second.output_tokens(), static_cast<int32_t>(ids.size()));
}

TEST_F(CandidateOutputTest, AResumedStopStringMayHaveBegunBefore) {
  options_.stop = {"brown fox"};
  const std::vector<int32_t> ids = Encode("The quick brown fox jumps");
  // Find where " brown" ends: the text up to there, less the held-back beginning of the stop
  // string, was sent.
  CandidateOutput first(model_, options_, {}, {}, 0);
  std::string sent;
  size_t count = 0;
  while (count < ids.size()) {
    ASSERT_TRUE(first.Push(Event(ids[count++])).ok());
    sent += first.Take().text;
    if (model_.tokenizer->Decode(std::span(ids).first(count), true)->find("brow") !=
        std::string::npos)
      break;
  }
  ASSERT_FALSE(first.stop_matched());
  CandidateOutput second(model_, options_, {}, std::span(ids).first(count),
                         static_cast<int64_t>(sent.size()));
  std::string rest;
  for (size_t i = count; i < ids.size() && !second.stop_matched(); ++i) {
    ASSERT_TRUE(second.Push(Event(ids[i])).ok());
    rest += second.Take().text;
  }
  EXPECT_TRUE(second.stop_matched());
  EXPECT_EQ(sent + rest, "The quick ");
}

TEST_F(CandidateOutputTest, WithoutATokenizerThereAreIdsAlone) {
  model_.tokenizer.reset();
  CandidateOutput output(model_, options_, {}, {}, 0);
  ASSERT_TRUE(output.Push(Event(77)).ok());
  const OutputDelta delta = output.Take();
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(delta.tokens.size(), 1u);
}

}  // namespace
}  // namespace qserve::worker::serve
