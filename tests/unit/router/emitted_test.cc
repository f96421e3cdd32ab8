// What a resumed request says, after what was forwarded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/proxy/emitted.h"

namespace qserve::router {
namespace {

using testing::ElementsAre;

v1::StreamGenerateResponse Chunk(int candidate, std::vector<int32_t> ids, const std::string& text) {
  v1::StreamGenerateResponse chunk;
  chunk.set_candidate_index(candidate);
  chunk.set_text_delta(text);
  chunk.mutable_token_ids()->Assign(ids.begin(), ids.end());
  return chunk;
}

TEST(Emitted, NumbersChunksWithoutGapAcrossReplicas) {
  Emitted emitted;
  v1::StreamGenerateResponse first = Chunk(0, {1}, "a");
  first.mutable_info()->set_numerics_id("n");
  first.set_sequence_number(1);
  emitted.Note(first);
  EXPECT_EQ(first.sequence_number(), 1);
  EXPECT_TRUE(first.has_info());
  // The second replica begins to count anew and introduces itself; the client must not see either.
  v1::StreamGenerateResponse second = Chunk(0, {2}, "b");
  second.mutable_info()->set_numerics_id("n");
  second.set_sequence_number(1);
  emitted.Note(second);
  EXPECT_EQ(second.sequence_number(), 2);
  EXPECT_FALSE(second.has_info());
}

TEST(Emitted, ResumesEveryCandidateFromWhatWasForwarded) {
  Emitted emitted;
  v1::StreamGenerateResponse chunk = Chunk(0, {1, 2}, "ab");
  chunk.mutable_info()->set_numerics_id("n");
  emitted.Note(chunk);
  chunk = Chunk(1, {7}, "xyz");
  chunk.set_finish_reason(v1::FINISH_REASON_STOP);
  emitted.Note(chunk);
  chunk = Chunk(0, {3}, "");
  emitted.Note(chunk);
  v1::GenerationSpec spec;
  spec.mutable_output()->set_n(3);
  const v1::Resume resume = emitted.Resume(spec).resume();
  ASSERT_EQ(resume.candidates_size(), 3);
  EXPECT_EQ(resume.numerics_id(), "n");
  EXPECT_THAT(resume.candidates(0).token_ids(), ElementsAre(1, 2, 3));
  EXPECT_EQ(resume.candidates(0).text_bytes(), 2);
  EXPECT_FALSE(resume.candidates(0).finished());
  EXPECT_TRUE(resume.candidates(1).finished());
  EXPECT_EQ(resume.candidates(1).text_bytes(), 3);
  EXPECT_EQ(resume.candidates(2).token_ids_size(), 0);
  EXPECT_EQ(emitted.tokens(), 4);
  EXPECT_FALSE(emitted.finished(3));
}

TEST(Emitted, AddsToWhatTheClientItselfResumed) {
  Emitted emitted;
  v1::StreamGenerateResponse chunk = Chunk(0, {3}, "c");
  emitted.Note(chunk);
  v1::GenerationSpec spec;
  auto& given = *spec.mutable_resume()->add_candidates();
  given.add_token_ids(1);
  given.set_text_bytes(5);
  const v1::Resume resume = emitted.Resume(spec).resume();
  EXPECT_THAT(resume.candidates(0).token_ids(), ElementsAre(1, 3));
  EXPECT_EQ(resume.candidates(0).text_bytes(), 6);
}

TEST(Emitted, SurvivesAnAbsurdCandidateIndex) {
  Emitted emitted;
  v1::StreamGenerateResponse chunk = Chunk(2'000'000'000, {1}, "");
  emitted.Note(chunk);
  chunk = Chunk(-5, {1}, "");
  emitted.Note(chunk);
  EXPECT_EQ(emitted.tokens(), 2);
}

}  // namespace
}  // namespace qserve::router
