#include "common/rpc/errors.h"

#include <fmt/format.h>

#include "common/check.h"
#include "qserve/rpc/error_details.pb.h"

namespace qserve::rpc {
namespace {

template <class Message>
std::optional<Message> FindDetail(const grpc::Status& status) {
  google::rpc::Status parsed;
  if (!parsed.ParseFromString(status.error_details())) return std::nullopt;
  for (const google::protobuf::Any& detail : parsed.details()) {
    Message message;
    if (detail.Is<Message>() && detail.UnpackTo(&message)) return message;
  }
  return std::nullopt;
}

}  // namespace

grpc::Status MakeError(grpc::StatusCode code, const std::string& message,
                       const ErrorDetails& details) {
  google::rpc::Status status;
  status.set_code(static_cast<int>(code));
  status.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(details.reason));
  info.set_domain(std::string(kErrorDomain));
  for (const auto& [key, value] : details.metadata) (*info.mutable_metadata())[key] = value;
  status.add_details()->PackFrom(info);
  if (!details.violations.empty()) {
    google::rpc::BadRequest bad_request;
    for (const FieldViolation& violation : details.violations) {
      auto* field = bad_request.add_field_violations();
      field->set_field(violation.field);
      field->set_description(violation.description);
    }
    status.add_details()->PackFrom(bad_request);
  }
  if (details.retry_delay) {
    google::rpc::RetryInfo retry;
    const auto delay_ms = details.retry_delay->count();
    retry.mutable_retry_delay()->set_seconds(delay_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay_ms % 1000) * 1'000'000);
    status.add_details()->PackFrom(retry);
  }
  if (!details.request_id.empty()) {
    google::rpc::RequestInfo request;
    request.set_request_id(details.request_id);
    status.add_details()->PackFrom(request);
  }
  return grpc::Status(code, message, status.SerializeAsString());
}

grpc::Status MakeInvalidArgument(std::vector<FieldViolation> violations,
                                 const std::string& request_id) {
  QSERVE_CHECK(!violations.empty());
  std::string message = fmt::format("{} {}", violations[0].field, violations[0].description);
  if (violations.size() > 1)
    message += fmt::format(" (and {} more violations)", violations.size() - 1);
  return MakeError(
      grpc::StatusCode::INVALID_ARGUMENT, message,
      {.reason = kInvalidRequest, .violations = std::move(violations), .request_id = request_id});
}

std::string ReasonOf(const grpc::Status& status) {
  const auto info = FindDetail<google::rpc::ErrorInfo>(status);
  return info && info->domain() == kErrorDomain ? info->reason() : "";
}

std::string Describe(const grpc::Status& status) {
  std::string text = ReasonOf(status);
  if (text.empty()) text = fmt::format("gRPC status {}", static_cast<int>(status.error_code()));
  const auto bad_request = FindDetail<google::rpc::BadRequest>(status);
  if (!bad_request) return fmt::format("{}: {}", text, status.error_message());
  const char* separator = ": ";
  for (const auto& violation : bad_request->field_violations()) {
    text += fmt::format("{}{} {}", separator, violation.field(), violation.description());
    separator = "; ";
  }
  return text;
}

std::optional<std::chrono::milliseconds> RetryDelayOf(const grpc::Status& status) {
  const auto retry = FindDetail<google::rpc::RetryInfo>(status);
  if (!retry) return std::nullopt;
  return std::chrono::seconds(retry->retry_delay().seconds()) +
         std::chrono::milliseconds(retry->retry_delay().nanos() / 1'000'000);
}

void AddRetryPushback(grpc::ServerContextBase& context, const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED) return;
  if (const auto delay = RetryDelayOf(status))
    context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(delay->count()));
}

grpc::StatusCode ToGrpcCode(absl::StatusCode code) {
  // The canonical codes are the same numbers in both libraries.
  return static_cast<grpc::StatusCode>(static_cast<int>(code));
}

}  // namespace qserve::rpc
