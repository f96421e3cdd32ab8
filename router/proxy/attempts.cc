#include "router/proxy/attempts.h"

#include <random>

#include <fmt/format.h>

#include "common/hashing.h"
#include "common/rpc/errors.h"

namespace qserve::router {
namespace {

uint64_t Draw() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

Replica* Attempts::Next(const std::string& numerics_id) {
  if (tried_.size() >= kMaxAttempts) return nullptr;
  Replica* replica =
      registry_.Pick(spec_.model(), {.session_id = spec_.session_id()}, tried_, numerics_id);
  if (replica != nullptr) tried_.push_back(replica);
  return replica;
}

bool Attempts::Retryable(const grpc::Status& status) {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) return true;
  return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
         rpc::ReasonOf(status) == rpc::kQueueFull;
}

grpc::Status Attempts::Refusal(const grpc::Status& cause) const {
  if (cause.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) return cause;
  if (spec_.model().empty())
    return rpc::MakeInvalidArgument({{"spec.model", "is required"}}, spec_.request_id());
  if (!registry_.Knows(spec_.model()) && !registry_.Incomplete()) {
    return rpc::MakeError(
        grpc::StatusCode::NOT_FOUND,
        fmt::format("model '{}' is not served here", spec_.model().substr(0, 128)),
        {.reason = rpc::kModelNotFound, .request_id = spec_.request_id()});
  }
  return rpc::MakeError(grpc::StatusCode::UNAVAILABLE,
                        "no replica takes requests for this model at present",
                        {.reason = rpc::kNoReadyReplica,
                         .retry_delay = std::chrono::milliseconds(1000),
                         .request_id = spec_.request_id()});
}

void Complete(v1::GenerationSpec& spec) {
  if (spec.request_id().empty()) spec.set_request_id(HexDigest(Draw()) + HexDigest(Draw()));
  if (!spec.sampling().has_seed()) spec.mutable_sampling()->set_seed(Draw());
}

}  // namespace qserve::router
