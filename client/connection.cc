#include "client/connection.h"

#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>

#include <iterator>
#include <utility>
#include <vector>

#include "client/terminal_text.h"
#include "common/cli/options.h"
#include "common/rpc/errors.h"

namespace qserve::client {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
// Servers count more frequent pings than one in five minutes as abuse.
constexpr int kKeepaliveMs = 330'000;
constexpr size_t kMaxNamesBytes = 1024;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  // Somebody waits for a server that is starting: it is looked for often.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void SetTimeout(grpc::ClientContext& context, std::chrono::milliseconds timeout) {
  context.set_deadline(std::chrono::system_clock::now() + timeout);
}

// grpc.health.v1.HealthCheckRequest with field 1, `service`; names are shorter than 128 bytes.
grpc::ByteBuffer HealthRequest(const std::string& service) {
  std::string bytes = "\x0a";
  bytes += static_cast<char>(service.size());
  bytes += service;
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// Field 1 of grpc.health.v1.HealthCheckResponse, an enum whose 1 is SERVING.
Health ParseHealth(const grpc::ByteBuffer& response) {
  grpc::Slice slice;
  if (!response.DumpToSingleSlice(&slice).ok()) return Health::kNotServing;
  const std::string bytes(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes == std::string("\x08\x01", 2) ? Health::kServing : Health::kNotServing;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Create(const std::string& address,
                                                               Interrupt& interrupt) {
  if (!cli::ParseHostPort(address, nullptr)) {
    return absl::InvalidArgumentError(
        fmt::format("--address must be HOST:PORT, got '{}'", OneLine(address)));
  }
  return std::unique_ptr<Connection>(new Connection(address, interrupt));
}

Connection::Connection(std::string address, Interrupt& interrupt)
    : address_(std::move(address)),
      interrupt_(interrupt),
      channel_(MakeChannel(address_)),
      inference_(v1::InferenceService::NewStub(channel_)),
      worker_(v1::WorkerService::NewStub(channel_)) {}

grpc::Status Connection::ListModels(std::chrono::milliseconds timeout,
                                    v1::ListModelsResponse& out) {
  grpc::ClientContext context;
  SetTimeout(context, timeout);
  const Interrupt::Scope scope(interrupt_, context);
  return inference_->ListModels(&context, v1::ListModelsRequest(), &out);
}

grpc::Status Connection::CheckHealth(std::chrono::milliseconds timeout, Health& out) {
  grpc::ClientContext context;
  SetTimeout(context, timeout);
  const Interrupt::Scope scope(interrupt_, context);
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  const grpc::ByteBuffer request = HealthRequest(v1::InferenceService::service_full_name());
  grpc::ByteBuffer response;
  grpc::Status status;
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED ||
      status.error_code() == grpc::StatusCode::NOT_FOUND) {
    out = Health::kNotOffered;
    return grpc::Status::OK;
  }
  if (status.ok()) out = ParseHealth(response);
  return status;
}

grpc::Status Connection::WorkerStatus(std::chrono::milliseconds timeout,
                                      v1::WatchStatusResponse& out) {
  grpc::ClientContext context;
  SetTimeout(context, timeout);
  const Interrupt::Scope scope(interrupt_, context);
  const auto reader = worker_->WatchStatus(&context, v1::WatchStatusRequest());
  const bool received = reader->Read(&out);
  if (received) context.TryCancel();  // the rest of the stream is not needed
  const grpc::Status status = reader->Finish();
  return received ? grpc::Status::OK : status;
}

absl::StatusOr<v1::Model> Connection::FindModel(const std::string& name,
                                                std::chrono::milliseconds timeout) {
  v1::ListModelsResponse response;
  if (const grpc::Status status = ListModels(timeout, response); !status.ok())
    return absl::UnavailableError(Explain(status));
  if (response.models().empty())
    return absl::NotFoundError(fmt::format("{} serves no model yet", address_));
  std::string names;
  for (const v1::Model& model : response.models()) {
    if (model.name() == name || (name.empty() && response.models_size() == 1)) return model;
    if (names.size() < kMaxNamesBytes)
      fmt::format_to(std::back_inserter(names), "{}{}", names.empty() ? "" : ", ",
                     OneLine(model.name()));
  }
  if (name.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{} serves several models, choose one by --model: {}", address_, names));
  }
  return absl::NotFoundError(
      fmt::format("{} serves no model '{}', but: {}", address_, OneLine(name), names));
}

std::string Connection::Explain(const grpc::Status& status) const {
  if (!rpc::ReasonOf(status).empty()) return OneLine(rpc::Describe(status));
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return fmt::format("UNAVAILABLE: no answer from {} ({})", address_,
                       OneLine(status.error_message()));
  }
  return fmt::format("{}: {}", CodeName(status.error_code()), OneLine(status.error_message()));
}

std::string CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : fmt::format("gRPC status {}", index);
}

}  // namespace qserve::client
