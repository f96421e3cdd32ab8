// The other end of edge and router tests: requests, streams read at the test's pace, and what every
// stream must look like.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "common/rpc/errors.h"
#include "qserve/rpc/error_details.pb.h"
#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::integration {

// A connection of its own.
inline std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// Seeded, without an end but `max_tokens`. Prompts of different `stream` share no first token.
inline v1::GenerationSpec Spec(int32_t max_tokens, int32_t prompt_tokens = 8, int32_t stream = 0) {
  v1::GenerationSpec spec;
  spec.set_model("demo");
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    spec.mutable_prompt()->mutable_token_ids()->add_ids(4 + (97 * (stream + 1) + 31 * i) % 4000);
  }
  spec.mutable_sampling()->set_seed(7);
  spec.mutable_stopping()->set_max_tokens(max_tokens);
  spec.mutable_stopping()->set_ignore_eos(true);
  return spec;
}

struct Outcome {
  std::vector<v1::StreamGenerateResponse> chunks;
  grpc::Status status;

  std::vector<int32_t> Ids(int32_t candidate = 0) const {
    std::vector<int32_t> ids;
    for (const auto& chunk : chunks) {
      if (chunk.candidate_index() != candidate) continue;
      ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    }
    return ids;
  }
  std::string Text(int32_t candidate = 0) const {
    std::string text;
    for (const auto& chunk : chunks) {
      if (chunk.candidate_index() == candidate) text += chunk.text_delta();
    }
    return text;
  }
  v1::FinishReason Finish(int32_t candidate = 0) const {
    for (const auto& chunk : chunks) {
      if (chunk.candidate_index() == candidate && chunk.finish_reason() != 0) {
        return chunk.finish_reason();
      }
    }
    return v1::FINISH_REASON_UNSPECIFIED;
  }
  const v1::Usage& usage() const { return chunks.back().usage(); }
};

// What holds of every stream that ended well.
inline void ExpectWhole(const Outcome& outcome, int32_t candidates = 1) {
  ASSERT_TRUE(outcome.status.ok()) << rpc::Describe(outcome.status);
  ASSERT_FALSE(outcome.chunks.empty());
  int64_t sequence_number = 0;
  int64_t tokens = 0;
  std::vector<bool> ended(static_cast<size_t>(candidates), false);
  for (const auto& chunk : outcome.chunks) {
    EXPECT_EQ(chunk.sequence_number(), ++sequence_number);
    EXPECT_EQ(chunk.has_info(), sequence_number == 1);
    EXPECT_EQ(chunk.has_usage(), &chunk == &outcome.chunks.back());
    tokens += chunk.token_ids_size();
    ASSERT_LT(chunk.candidate_index(), candidates);
    const auto candidate = static_cast<size_t>(chunk.candidate_index());
    EXPECT_FALSE(ended[candidate]) << "a chunk after the last";
    ended[candidate] = chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  }
  for (const bool end : ended) EXPECT_TRUE(end);
  EXPECT_EQ(outcome.usage().output_tokens(), tokens);
}

// The same to the client: tokens, text, ends and counts of every candidate.
inline void ExpectSame(const Outcome& a, const Outcome& b, int32_t candidates = 1) {
  for (int32_t i = 0; i < candidates; ++i) {
    EXPECT_EQ(a.Ids(i), b.Ids(i));
    EXPECT_EQ(a.Text(i), b.Text(i));
    EXPECT_EQ(a.Finish(i), b.Finish(i));
  }
  ASSERT_FALSE(a.chunks.empty());
  ASSERT_FALSE(b.chunks.empty());
  EXPECT_EQ(a.usage().output_tokens(), b.usage().output_tokens());
  EXPECT_EQ(a.usage().prompt_tokens(), b.usage().prompt_tokens());
}

// What an error's ErrorInfo says under `key`, empty if nothing.
inline std::string MetadataOf(const grpc::Status& status, const std::string& key) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const auto& any : details.details()) {
    if (!any.UnpackTo(&info)) continue;
    const auto found = info.metadata().find(key);
    if (found != info.metadata().end()) return found->second;
  }
  return "";
}

// A stream that the test reads chunk by chunk. Cancelled if it is dropped unfinished.
class LiveStream {
 public:
  LiveStream(std::shared_ptr<grpc::Channel> channel, const v1::GenerationSpec& spec,
             std::chrono::seconds deadline = std::chrono::seconds(120))
      : stub_(v1::InferenceService::NewStub(std::move(channel))) {
    *request_.mutable_spec() = spec;
    context_.set_deadline(std::chrono::system_clock::now() + deadline);
    reader_ = stub_->StreamGenerate(&context_, request_);
  }
  ~LiveStream() {
    if (!finished_) {
      context_.TryCancel();
      End();
    }
  }
  bool Read() {
    v1::StreamGenerateResponse chunk;
    if (!reader_->Read(&chunk)) return false;
    outcome_.chunks.push_back(std::move(chunk));
    return true;
  }
  // Until that many tokens have come.
  bool ReadTokens(size_t count, int32_t candidate = 0) {
    while (outcome_.Ids(candidate).size() < count) {
      if (!Read()) return false;
    }
    return true;
  }
  void Cancel() { context_.TryCancel(); }
  // Reads to the end.
  const Outcome& End() {
    while (!finished_ && Read()) {
    }
    if (!finished_) outcome_.status = reader_->Finish();
    finished_ = true;
    return outcome_;
  }
  const Outcome& so_far() const { return outcome_; }
  grpc::ClientContext& context() { return context_; }

 private:
  std::unique_ptr<v1::InferenceService::Stub> stub_;
  v1::StreamGenerateRequest request_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::StreamGenerateResponse>> reader_;
  Outcome outcome_;
  bool finished_ = false;
};

inline Outcome Stream(const std::shared_ptr<grpc::Channel>& channel,
                      const v1::GenerationSpec& spec) {
  return LiveStream(channel, spec).End();
}

struct Answer {
  v1::GenerateResponse response;
  grpc::Status status;
};

inline Answer Generate(const std::shared_ptr<grpc::Channel>& channel,
                       const v1::GenerationSpec& spec) {
  Answer answer;
  v1::GenerateRequest request;
  *request.mutable_spec() = spec;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  answer.status =
      v1::InferenceService::NewStub(channel)->Generate(&context, request, &answer.response);
  return answer;
}

// Any method with any bytes. `response`, if asked for, is what came back.
inline grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                            const std::string& method, const std::string& bytes,
                            std::string* response = nullptr,
                            const std::vector<std::pair<std::string, std::string>>& metadata = {}) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer answer;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, {}, &request, &answer,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  grpc::Status status = done.get_future().get();
  if (response != nullptr && status.ok()) {
    std::vector<grpc::Slice> slices;
    if (answer.Dump(&slices).ok()) {
      response->clear();
      for (const grpc::Slice& part : slices) {
        response->append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
  }
  return status;
}

enum class Health { kUnknownService, kServing, kNotServing, kNoAnswer };

// grpc.health.v1: its request is a string in field 1, its response an enumeration in field 1, which
// are the wrappers of protobuf on the wire.
inline Health HealthOf(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  google::protobuf::StringValue request;
  request.set_value(service);
  std::string bytes;
  const grpc::Status status =
      CallRaw(channel, "/grpc.health.v1.Health/Check", request.SerializeAsString(), &bytes);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return Health::kUnknownService;
  google::protobuf::Int32Value response;
  if (!status.ok() || !response.ParseFromString(bytes)) return Health::kNoAnswer;
  return response.value() == 1 ? Health::kServing : Health::kNotServing;
}

inline constexpr const char* kInferenceName = "qserve.v1.InferenceService";

// Waits until a condition of the replica's pushed status holds.
template <class Condition>
bool WatchUntil(const std::shared_ptr<grpc::Channel>& channel, Condition condition) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto stub = v1::WorkerService::NewStub(channel);
  const auto reader = stub->WatchStatus(&context, v1::WatchStatusRequest());
  v1::WatchStatusResponse status;
  bool held = false;
  while (!held && reader->Read(&status)) held = condition(status);
  context.TryCancel();
  while (reader->Read(&status)) {
  }
  reader->Finish();
  return held;
}

}  // namespace qserve::integration
