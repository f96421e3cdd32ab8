// Calls through a router to replicas that refuse or break: another replica answers, small calls
// included, three are tried at most, and the client's deadline ends it all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/integration/edge_broken_replica.h"
#include "tests/integration/router_fixture.h"

namespace qserve::integration {
namespace {

class RouterSmallCalls : public RouterTest {
 protected:
  grpc::Status CountTokens(v1::CountTokensResponse& response,
                           Duration patience = std::chrono::seconds(60)) {
    v1::CountTokensRequest request;
    request.set_model("demo");
    request.mutable_prompt()->set_text("The quick brown fox");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    return v1::InferenceService::NewStub(channel_)->CountTokens(&context, request, &response);
  }
};

// Of every two calls one begins at the broken replica: ties go to the one picked least.
class RouterBrokenReplica : public RouterSmallCalls,
                            public testing::WithParamInterface<grpc::StatusCode> {
 protected:
  template <class Request, class Response>
  void ExpectAnswered(const std::string& method, Request request, Response& response) {
    request.set_model("demo");
    std::string bytes;
    const grpc::Status status = CallRaw(channel_, std::string("/") + kInferenceName + "/" + method,
                                        request.SerializeAsString(), &bytes);
    EXPECT_TRUE(status.ok()) << method << ": " << rpc::Describe(status);
    EXPECT_TRUE(response.ParseFromString(bytes));
  }
};

TEST_P(RouterBrokenReplica, HasItsCallsAnsweredByAnother) {
  BrokenReplica broken(GetParam());
  Start({{}}, {broken.address()});
  const Outcome undisturbed = Undisturbed(Spec(5));
  for (int i = 0; i < 5; ++i) {
    v1::CountTokensRequest count;
    count.mutable_prompt()->set_text("The quick brown fox");
    v1::CountTokensResponse counted;
    ExpectAnswered("CountTokens", count, counted);
    EXPECT_GT(counted.token_count(), 0);
    v1::TokenizeRequest tokenize;
    tokenize.set_text("Hello there");
    v1::TokenizeResponse tokens;
    ExpectAnswered("Tokenize", tokenize, tokens);
    v1::DetokenizeRequest detokenize;
    *detokenize.mutable_token_ids() = tokens.token_ids();
    detokenize.set_skip_special_tokens(true);
    v1::DetokenizeResponse text;
    ExpectAnswered("Detokenize", detokenize, text);
    EXPECT_EQ(text.text(), "Hello there");
    const Outcome outcome = Stream(channel_, Spec(5));
    ExpectWhole(outcome);
    ExpectSame(outcome, undisturbed);
    const Answer answer = Generate(channel_, Spec(5));
    EXPECT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  }
  EXPECT_GE(broken.asked(), 5);
  EXPECT_EQ(Metric("qserve_router_retries_total"), static_cast<double>(broken.asked()));
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

// CANCELLED is what gRPC says of a call that reaches a server while it shuts down.
INSTANTIATE_TEST_SUITE_P(Codes, RouterBrokenReplica,
                         testing::Values(grpc::StatusCode::UNAVAILABLE,
                                         grpc::StatusCode::CANCELLED));

TEST_F(RouterSmallCalls, MoveWhenAReplicaDiesBeforeItAnswers) {
  BrokenReplica dying(grpc::StatusCode::UNAVAILABLE, true);
  Relay relay(dying.port());
  Start({{}}, {relay.address()});
  // Whichever of the two is asked first, the dying one has one of the two calls.
  v1::CountTokensResponse first;
  v1::CountTokensResponse second;
  grpc::Status statuses[2];
  std::thread one([&] { statuses[0] = CountTokens(first); });
  std::thread two([&] { statuses[1] = CountTokens(second); });
  EXPECT_TRUE(Eventually([&] { return dying.asked() > 0; }));
  relay.Cut();
  one.join();
  two.join();
  for (const grpc::Status& status : statuses) EXPECT_TRUE(status.ok()) << rpc::Describe(status);
  EXPECT_EQ(first.token_count(), second.token_count());
  EXPECT_GT(first.token_count(), 0);
}

TEST_F(RouterSmallCalls, TryNoMoreThanThreeReplicas) {
  BrokenReplica broken[4];
  Start({}, {broken[0].address(), broken[1].address(), broken[2].address(), broken[3].address()});
  v1::CountTokensResponse response;
  const grpc::Status status = CountTokens(response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kNoReadyReplica);
  int64_t asked = 0;
  for (const BrokenReplica& one : broken) asked += one.asked();
  EXPECT_EQ(asked, 3);
}

TEST_F(RouterSmallCalls, EndWithTheClientsDeadline) {
  BrokenReplica silent(grpc::StatusCode::UNAVAILABLE, true);
  Start({}, {silent.address()});
  v1::CountTokensResponse response;
  EXPECT_EQ(CountTokens(response, std::chrono::milliseconds(300)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

TEST_F(RouterSmallCalls, ThatAreMistakenAreRefusedInTheirOwnWords) {
  Start({{}});
  const std::string service = std::string("/") + kInferenceName + "/";
  const grpc::Status nameless = CallRaw(channel_, service + "CountTokens", "");
  EXPECT_EQ(rpc::Describe(nameless), "INVALID_REQUEST: model is required");
  EXPECT_EQ(rpc::ReasonOf(CallRaw(channel_, service + "Tokenize", "\x0a\x03xyz")),
            rpc::kModelNotFound);
}

}  // namespace
}  // namespace qserve::integration
