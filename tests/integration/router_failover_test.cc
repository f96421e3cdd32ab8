// Replicas that die, stop or fail under a router: before the first token nobody notices, later the
// stream goes on with exactly the tokens of an undisturbed run, or says that it cannot.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/integration/router_fixture.h"

namespace qserve::integration {
namespace {

TEST_F(RouterTest, ADeathBeforeTheFirstTokenIsNotSeen) {
  Start({{}, {}});
  CloseGates();
  LiveStream stream(channel_, Spec(30));
  relays_[BusyReplica()]->Cut();
  ASSERT_TRUE(WaitsForReady(1));
  OpenGates();
  ExpectWhole(stream.End());
  ExpectSame(stream.so_far(), Undisturbed(Spec(30)));
  EXPECT_EQ(Metric("qserve_router_retries_total"), 1);
  EXPECT_EQ(Metric("qserve_router_resumes_total"), 0);
}

TEST_F(RouterTest, AUnaryCallIsTriedAgain) {
  Start({{}, {}});
  CloseGates();
  std::thread cut([this] {
    relays_[BusyReplica()]->Cut();
    EXPECT_TRUE(WaitsForReady(1));
    OpenGates();
  });
  const Answer answer = Generate(channel_, Spec(30));
  cut.join();
  ASSERT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  EXPECT_THAT(answer.response.candidates(0).token_ids(),
              testing::ElementsAreArray(Undisturbed(Spec(30)).Ids()));
}

// Requests of every kind that must survive.
std::vector<v1::GenerationSpec> Kinds() {
  std::vector<v1::GenerationSpec> kinds(4, Spec(120));
  kinds[0].mutable_sampling()->set_temperature(0);
  kinds[0].mutable_sampling()->clear_seed();
  kinds[1].mutable_sampling()->set_temperature(1.3f);
  kinds[2].mutable_output()->set_n(3);
  kinds[2].mutable_output()->set_logprobs(1);
  kinds[3].mutable_prompt()->set_text("The quick brown fox");
  return kinds;
}

class RouterKindsTest : public RouterTest, public testing::WithParamInterface<size_t> {};

TEST_P(RouterKindsTest, ADeathMidStreamCostsNoTokenAndDoublesNone) {
  v1::GenerationSpec spec = Kinds()[GetParam()];
  const int32_t candidates = spec.output().has_n() ? spec.output().n() : 1;
  if (GetParam() == 3) {
    // A stop string that comes late: the end of what is generated without one.
    const Outcome free = Undisturbed(spec);
    std::string text = free.Text();
    size_t begin = text.size() * 3 / 4;
    while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
    size_t end = begin + 9;
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
    spec.mutable_stopping()->add_stop(text.substr(begin, end - begin));
  }
  Start({{}, {}, {}});
  CloseGates();
  LiveStream stream(channel_, spec);
  const size_t first = BusyReplica();
  replicas_[first]->gate().Let(20);
  ASSERT_TRUE(stream.ReadTokens(5));
  relays_[first]->Cut();
  ASSERT_TRUE(WaitsForReady(2));
  // And a second time, on the replica that took over.
  size_t second = 0;
  ASSERT_TRUE(Eventually([&] {
    for (second = 0; second < 3; ++second) {
      if (second != first && !replicas_[second]->engine().Idle()) return true;
    }
    return false;
  }));
  replicas_[second]->gate().Let(30);
  ASSERT_TRUE(stream.ReadTokens(30));
  relays_[second]->Cut();
  OpenGates();
  ExpectWhole(stream.End(), candidates);
  if (spec.sampling().has_seed()) {
    ExpectSame(stream.so_far(), Undisturbed(spec), candidates);
  } else {
    spec.mutable_sampling()->set_seed(stream.so_far().chunks.front().info().seed());
    ExpectSame(stream.so_far(), Undisturbed(spec), candidates);
  }
  EXPECT_EQ(Metric("qserve_router_resumes_total"), 2);
}

INSTANTIATE_TEST_SUITE_P(Kinds, RouterKindsTest, testing::Range(size_t{0}, Kinds().size()));

TEST_F(RouterTest, AStoppedReplicaIsNoticedByItsSilence) {
  Start({{}, {}});
  CloseGates();
  LiveStream stream(channel_, Spec(60));
  const size_t first = BusyReplica();
  replicas_[first]->gate().Let(10);
  ASSERT_TRUE(stream.ReadTokens(3));
  relays_[first]->Freeze();
  OpenGates();
  ExpectWhole(stream.End());
  ExpectSame(stream.so_far(), Undisturbed(Spec(60)));
  EXPECT_EQ(router_->ready_replicas(), 1);
}

TEST_F(RouterTest, AFailedStepMovesItsStreams) {
  ReplicaOptions failing;
  failing.executor.fail_await_of_step = 15;
  Start({failing, {}});
  std::vector<std::unique_ptr<LiveStream>> streams;
  for (int32_t i = 0; i < 4; ++i) {
    streams.push_back(std::make_unique<LiveStream>(channel_, Spec(60, 8, i)));
  }
  for (int32_t i = 0; i < 4; ++i) {
    const Outcome& outcome = streams[static_cast<size_t>(i)]->End();
    ExpectWhole(outcome);
    ExpectSame(outcome, Undisturbed(Spec(60, 8, i)));
  }
  EXPECT_TRUE(WaitsForReady(1));
}

TEST_F(RouterTest, WhatADrainedReplicaDoesNotFinishGoesOnElsewhere) {
  Start({{}, {}});
  CloseGates();
  v1::GenerationSpec spec = Spec(60);
  spec.mutable_output()->set_n(2);
  LiveStream stream(channel_, spec);
  const size_t first = BusyReplica();
  Answer answer;
  std::thread unary([&] { answer = Generate(channel_, Spec(60, 8, 1)); });
  LiveStream third(channel_, Spec(60, 8, 2));
  // Of the three calls the first replica has one or two; whatever it has moves.
  replicas_[first]->gate().Let(20);
  EXPECT_TRUE(stream.ReadTokens(5));
  replicas_[first]->server().StartDraining();
  EXPECT_TRUE(WaitsForReady(1));
  EXPECT_EQ(stream.so_far().Finish(), v1::FINISH_REASON_UNSPECIFIED);
  replicas_[first]->server().Shutdown(kPatience);
  OpenGates();
  ExpectWhole(stream.End(), 2);
  ExpectSame(stream.so_far(), Undisturbed(spec), 2);
  ExpectWhole(third.End());
  ExpectSame(third.so_far(), Undisturbed(Spec(60, 8, 2)));
  unary.join();
  ASSERT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  EXPECT_THAT(answer.response.candidates(0).token_ids(),
              testing::ElementsAreArray(Undisturbed(Spec(60, 8, 1)).Ids()));
  EXPECT_GE(Metric("qserve_router_resumes_total"), 1);
  EXPECT_EQ(Metric("qserve_router_interrupted_total"), 0);
}

TEST_F(RouterTest, ASlowReadersReplicaMayDieToo) {
  Start({{}, {}});
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_logprobs(20);
  LiveStream stream(channel_, spec);
  // All is generated, and most of it waits at the replica for a client that does not read.
  size_t first = 0;
  ASSERT_TRUE(Eventually([&] {
    for (first = 0; first < 2; ++first) {
      if (replicas_[first]->engine().Stats().requests_finished == 1) return true;
    }
    return false;
  }));
  relays_[first]->Cut();
  ASSERT_TRUE(WaitsForReady(1));
  ExpectWhole(stream.End());
  ExpectSame(stream.so_far(), Undisturbed(spec));
}

TEST_F(RouterTest, ASlowReadersReplicaMayEndItsDrainToo) {
  Start({{}, {}});
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_logprobs(20);
  LiveStream stream(channel_, spec);
  size_t first = 0;
  ASSERT_TRUE(Eventually([&] {
    for (first = 0; first < 2; ++first) {
      if (replicas_[first]->engine().Stats().requests_finished == 1) return true;
    }
    return false;
  }));
  // What the client does not take within that time it gets from the other one.
  replicas_[first]->server().Shutdown(std::chrono::milliseconds(100));
  ExpectWhole(stream.End());
  ExpectSame(stream.so_far(), Undisturbed(spec));
}

TEST_F(RouterTest, ASlowClientMayLeaveWhileItsChunkWaits) {
  Start({{}});
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_logprobs(20);
  for (int i = 0; i < 5; ++i) {
    LiveStream stream(Connect("127.0.0.1:" + std::to_string(router_->port())), spec);
    EXPECT_TRUE(
        Eventually([&] { return replicas_[0]->engine().Stats().requests_finished == i + 1; }));
    stream.Cancel();
  }
  EXPECT_TRUE(replicas_[0]->ComesToRest());
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

TEST_F(RouterTest, OtherNumericsDoNotContinueAStream) {
  ReplicaOptions other;
  other.numerics_id = "numerics-b";
  Start({{}, other});
  CloseGates();
  LiveStream stream(channel_, Spec(60));
  const size_t first = BusyReplica();
  replicas_[first]->gate().Let(12);
  ASSERT_TRUE(stream.ReadTokens(4));
  relays_[first]->Cut();
  const grpc::Status status = stream.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kStreamInterrupted);
  EXPECT_EQ(MetadataOf(status, "tokens_emitted"), std::to_string(stream.so_far().Ids().size()));
  // What came is the beginning of the undisturbed run.
  const std::vector<int32_t> whole = Undisturbed(Spec(60)).Ids();
  const std::vector<int32_t> got = stream.so_far().Ids();
  ASSERT_LE(got.size(), whole.size());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), whole.begin()));
  EXPECT_EQ(Metric("qserve_router_interrupted_total"), 1);
}

TEST_F(RouterTest, NoReplicaLeftBeforeTheFirstTokenIsUnavailable) {
  Start({{}});
  CloseGates();
  LiveStream stream(channel_, Spec(60));
  BusyReplica();
  relays_[0]->Cut();
  const grpc::Status status = stream.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << rpc::Describe(status);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kNoReadyReplica);
}

}  // namespace
}  // namespace qserve::integration
