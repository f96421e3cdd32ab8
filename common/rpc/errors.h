// gRPC errors of the public API: google.rpc.Status with ErrorInfo (domain "qserve") and what else
// helps a client. Used by worker/serve, router and the command-line client; docs/API.md has the
// table of reasons.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"

namespace qserve::rpc {

inline constexpr std::string_view kErrorDomain = "qserve";

// Reasons of ErrorInfo, in the order of the table in docs/API.md.
inline constexpr std::string_view kInvalidRequest = "INVALID_REQUEST";
inline constexpr std::string_view kContextLengthExceeded = "CONTEXT_LENGTH_EXCEEDED";
inline constexpr std::string_view kModelNotFound = "MODEL_NOT_FOUND";
inline constexpr std::string_view kQueueFull = "QUEUE_FULL";
inline constexpr std::string_view kQueueTimeout = "QUEUE_TIMEOUT";
inline constexpr std::string_view kNoReadyReplica = "NO_READY_REPLICA";
inline constexpr std::string_view kDraining = "DRAINING";
inline constexpr std::string_view kStreamInterrupted = "STREAM_INTERRUPTED";
inline constexpr std::string_view kReplicaFailed = "REPLICA_FAILED";
inline constexpr std::string_view kNumericsMismatch = "NUMERICS_MISMATCH";
inline constexpr std::string_view kUnsupported = "UNSUPPORTED";
inline constexpr std::string_view kInternal = "INTERNAL";

struct FieldViolation {
  std::string field;        // path, such as "spec.sampling.top_p"
  std::string description;  // a sentence's remainder: "must be in (0, 1], got 1.5"
};

struct ErrorDetails {
  std::string_view reason;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<FieldViolation> violations;
  std::optional<std::chrono::milliseconds> retry_delay;
  std::string request_id;
};

// A status whose details carry all of that.
grpc::Status MakeError(grpc::StatusCode code, const std::string& message,
                       const ErrorDetails& details);

// INVALID_ARGUMENT INVALID_REQUEST listing every violation. Precondition: there is one.
grpc::Status MakeInvalidArgument(std::vector<FieldViolation> violations,
                                 const std::string& request_id);

// The reason of a status of ours, empty if it has none. Never fails: what does not parse has none.
std::string ReasonOf(const grpc::Status& status);
// All of its details, as one line for people: "INVALID_REQUEST: spec.sampling.top_p must be in (0,
// 1], got 1.5".
std::string Describe(const grpc::Status& status);
// RetryInfo's delay, if given.
std::optional<std::chrono::milliseconds> RetryDelayOf(const grpc::Status& status);

// Tells gRPC's own retry logic how long to wait (trailer grpc-retry-pushback-ms) where `status` is
// an overload with RetryInfo; otherwise does nothing. To be called before a call is finished with
// `status`.
void AddRetryPushback(grpc::ServerContextBase& context, const grpc::Status& status);

// Code for code; messages are kept.
grpc::StatusCode ToGrpcCode(absl::StatusCode code);

}  // namespace qserve::rpc
