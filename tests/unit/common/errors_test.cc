// Errors survive the trip through a grpc::Status, and garbage in the details is harmless.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/rpc/errors.h"

namespace qserve::rpc {
namespace {

TEST(Errors, CarryReasonViolationsAndRetryDelay) {
  const grpc::Status invalid = MakeInvalidArgument(
      {{"spec.sampling.top_p", "must be in (0, 1], got 2"}, {"spec.prompt", "is empty"}},
      "request-1");
  EXPECT_EQ(invalid.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ReasonOf(invalid), "INVALID_REQUEST");
  EXPECT_EQ(Describe(invalid),
            "INVALID_REQUEST: spec.sampling.top_p must be in (0, 1], got 2; spec.prompt is empty");
  EXPECT_EQ(RetryDelayOf(invalid), std::nullopt);

  const grpc::Status full =
      MakeError(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full",
                {.reason = kQueueFull, .retry_delay = std::chrono::milliseconds(1500)});
  EXPECT_EQ(ReasonOf(full), "QUEUE_FULL");
  EXPECT_EQ(RetryDelayOf(full), std::chrono::milliseconds(1500));
  EXPECT_EQ(Describe(full), "QUEUE_FULL: the queue is full");
}

TEST(Errors, ForeignStatusesHaveNoReason) {
  EXPECT_EQ(ReasonOf(grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone")), "");
  EXPECT_EQ(ReasonOf(grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone", "\xff\xfe garbage")), "");
  EXPECT_EQ(Describe(grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone")), "gRPC status 14: gone");
}

TEST(Errors, CanonicalCodesAreTheSameNumbers) {
  EXPECT_EQ(ToGrpcCode(absl::StatusCode::kUnavailable), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ToGrpcCode(absl::StatusCode::kInvalidArgument), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace qserve::rpc
