// Bytes that no well-meaning client sends: a clear error each, and a replica that goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/integration/edge_client.h"
#include "tests/integration/edge_replica.h"

namespace qserve::integration {
namespace {

const std::string kGenerate = std::string("/") + kInferenceName + "/Generate";
const std::string kStreamGenerate = std::string("/") + kInferenceName + "/StreamGenerate";

std::string Bytes(const v1::GenerationSpec& spec) {
  v1::GenerateRequest request;
  *request.mutable_spec() = spec;
  return request.SerializeAsString();
}

class EdgeHostile : public testing::Test {
 protected:
  ~EdgeHostile() override {
    EXPECT_TRUE(replica_.ComesToRest());
    const Answer answer = Generate(Connect(replica_.address()), Spec(5));
    EXPECT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  }
  TestReplica replica_;
  std::shared_ptr<grpc::Channel> channel_ = Connect(replica_.address());
};

TEST_F(EdgeHostile, TextThatIsNotUtf8IsRefusedAsTheClientsMistake) {
  v1::GenerationSpec spec = Spec(5);
  spec.mutable_prompt()->set_text("abcdefgh");
  for (const char* bad : {"abcde\xff\xfe!", "abc\xed\xa0\x80zz", "abcdefg\xc3",
                          "\xc0\x80"
                          "abcdef",
                          "\xf8\x88\x80\x80\x80"
                          "abc"}) {
    std::string bytes = Bytes(spec);
    const size_t place = bytes.find("abcdefgh");
    ASSERT_NE(place, std::string::npos);
    bytes.replace(place, 8, bad, 8);
    for (const std::string& method : {kGenerate, kStreamGenerate}) {
      const grpc::Status status = CallRaw(channel_, method, bytes);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << rpc::Describe(status);
      EXPECT_EQ(rpc::ReasonOf(status), rpc::kInvalidRequest);
      EXPECT_THAT(rpc::Describe(status), testing::HasSubstr("UTF-8"));
    }
  }
}

TEST_F(EdgeHostile, TruncatedAndMutatedMessagesAreAnswered) {
  v1::GenerationSpec spec = Spec(3, 6);
  spec.set_request_id("abc");
  spec.mutable_stopping()->add_stop("never");
  (*spec.mutable_sampling()->mutable_logit_bias())[5] = 1.5f;
  spec.mutable_sampling()->set_temperature(0.5f);
  spec.mutable_output()->set_n(2);
  const std::string whole = Bytes(spec);
  std::mt19937 random(20);
  const auto answered = [this](const std::string& method, const std::string& bytes) {
    const grpc::Status status = CallRaw(channel_, method, bytes);
    EXPECT_THAT(status.error_code(),
                testing::AnyOf(grpc::StatusCode::OK, grpc::StatusCode::INVALID_ARGUMENT,
                               grpc::StatusCode::NOT_FOUND, grpc::StatusCode::FAILED_PRECONDITION,
                               grpc::StatusCode::RESOURCE_EXHAUSTED))
        << rpc::Describe(status);
  };
  for (size_t length = 0; length < whole.size(); ++length) {
    answered(kGenerate, whole.substr(0, length));
  }
  for (int i = 0; i < 400; ++i) {
    std::string bytes = whole;
    for (uint32_t change = 0; change <= random() % 4; ++change) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.insert(random() % bytes.size(), 1, static_cast<char>(random()));
    answered(kGenerate, bytes);
  }
  const char* small_methods[] = {"CountTokens", "Tokenize", "Detokenize", "GetModel"};
  for (int i = 0; i < 200; ++i) {
    std::string bytes(random() % 64, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    answered(std::string("/") + kInferenceName + "/" + small_methods[i % 4], bytes);
  }
}

TEST_F(EdgeHostile, LengthsThatPromiseMoreThanThereIsAreRefused) {
  // Field 1 of two gigabytes, a group without end, a wrong wire type, ten thousand open groups.
  for (const std::string& bytes :
       {std::string("\x0a\xff\xff\xff\xff\x07"), std::string("\x0b\x0b\x0b"), std::string("\x0e"),
        std::string(10'000, '\x0b'), std::string("\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")}) {
    const grpc::Status status = CallRaw(channel_, kGenerate, bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << rpc::Describe(status);
  }
}

TEST_F(EdgeHostile, MalformedOrdersToAWorkerAreRefusedAndNotObeyed) {
  for (const char* method : {"WatchStatus", "Drain", "Abort"}) {
    for (const std::string& bytes :
         {std::string("\x0b\x0b"), std::string("\x0a\xff\xff\xff\xff\x07")}) {
      const grpc::Status status =
          CallRaw(channel_, std::string("/qserve.v1.WorkerService/") + method, bytes);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
      EXPECT_EQ(rpc::ReasonOf(status), rpc::kInvalidRequest);
    }
  }
  v1::AbortRequest request;
  for (int i = 0; i < 1025; ++i) request.add_request_ids("x");
  const grpc::Status status =
      CallRaw(channel_, "/qserve.v1.WorkerService/Abort", request.SerializeAsString());
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kInvalidRequest);
  EXPECT_THAT(rpc::Describe(status), testing::HasSubstr("request_ids"));
  EXPECT_FALSE(replica_.engine().Stats().draining);
}

TEST_F(EdgeHostile, UnknownMethodsAndServicesAreUnimplemented) {
  for (const std::string& method :
       {std::string("/") + kInferenceName + "/NoSuchMethod", std::string("/no.such.Service/Method"),
        std::string("/"), std::string("/../../etc/passwd")}) {
    EXPECT_EQ(CallRaw(channel_, method, "").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
}

TEST_F(EdgeHostile, WhatIsTooLargeIsRefusedUnread) {
  v1::GenerationSpec spec = Spec(5);
  spec.mutable_prompt()->set_text(std::string((8 << 20) + 1, 'a'));
  EXPECT_EQ(CallRaw(channel_, kGenerate, Bytes(spec)).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  spec.mutable_prompt()->set_text(std::string((4 << 20) - 100, 'a'));
  const grpc::Status status = CallRaw(channel_, kGenerate, Bytes(spec));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kContextLengthExceeded);
  // Metadata beyond 16 KiB.
  EXPECT_EQ(CallRaw(channel_, kGenerate, Bytes(Spec(5)), nullptr,
                    {{"x-large", std::string(64 << 10, 'm')}})
                .error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(EdgeHostile, OddButLegalTextIsServed) {
  for (const std::string& text :
       {std::string("a\0b", 3), std::string(2000, ' '), std::string("\u202e\ufeff\U0010ffff"),
        std::string("<|end_of_text|><|im_start|>")}) {
    v1::GenerationSpec spec = Spec(5);
    spec.mutable_prompt()->set_text(text);
    const Answer answer = Generate(channel_, spec);
    EXPECT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  }
  v1::GenerationSpec spec = Spec(5);
  spec.mutable_prompt()->set_text("");
  EXPECT_EQ(rpc::ReasonOf(Generate(channel_, spec).status), rpc::kInvalidRequest);
  spec = Spec(5);
  spec.set_model(std::string(1 << 20, 'x') + "/../demo");
  const grpc::Status status = Generate(channel_, spec).status;
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kModelNotFound);
  EXPECT_LT(status.error_message().size(), 512u);
}

}  // namespace
}  // namespace qserve::integration
