#include "router/proxy/attempts.h"

#include <fmt/format.h>

#include "common/entropy.h"
#include "common/rpc/errors.h"

namespace qserve::router {

Route RouteOf(const v1::GenerationSpec& spec) {
  return {.model = spec.model(),
          .model_field = "spec.model",
          .session_id = spec.session_id(),
          .request_id = spec.request_id(),
          .numerics_id = spec.resume().numerics_id()};
}

Replica* Attempts::Next(const std::string& numerics_id) {
  if (tried_.size() >= kMaxAttempts) return nullptr;
  Replica* replica =
      registry_.Pick(route_.model, {.session_id = route_.session_id}, tried_, numerics_id);
  if (replica != nullptr) tried_.push_back(replica);
  return replica;
}

bool Attempts::Retryable(const grpc::Status& status) {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
      status.error_code() == grpc::StatusCode::CANCELLED)
    return true;
  return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
         rpc::ReasonOf(status) == rpc::kQueueFull;
}

grpc::Status Attempts::Refusal(const grpc::Status& cause) const {
  if (cause.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) return cause;
  if (route_.model.empty())
    return rpc::MakeInvalidArgument({{route_.model_field, "is required"}}, route_.request_id);
  if (!registry_.Knows(route_.model) && !registry_.Incomplete()) {
    return rpc::MakeError(grpc::StatusCode::NOT_FOUND,
                          fmt::format("model '{}' is not served here", route_.model.substr(0, 128)),
                          {.reason = rpc::kModelNotFound, .request_id = route_.request_id});
  }
  return rpc::MakeError(grpc::StatusCode::UNAVAILABLE,
                        "no replica takes requests for this model at present",
                        {.reason = rpc::kNoReadyReplica,
                         .retry_delay = std::chrono::milliseconds(1000),
                         .request_id = route_.request_id});
}

grpc::Status Attempts::ShuttingDown(int64_t tokens_emitted) const {
  rpc::ErrorDetails details = {.reason = rpc::kDraining,
                               .retry_delay = std::chrono::milliseconds(1000),
                               .request_id = route_.request_id};
  if (tokens_emitted > 0) details.metadata = {{"tokens_emitted", std::to_string(tokens_emitted)}};
  return rpc::MakeError(grpc::StatusCode::UNAVAILABLE,
                        "the router shuts down before the request is finished", details);
}

v1::GenerationSpec Completed(v1::GenerationSpec spec) {
  if (spec.request_id().empty()) spec.set_request_id(DrawId());
  if (!spec.sampling().has_seed()) spec.mutable_sampling()->set_seed(DrawSeed());
  return spec;
}

}  // namespace qserve::router
