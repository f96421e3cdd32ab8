// A scripted InferenceService and WorkerService on a port of their own, for tests of what talks to
// a server: the commands and the load generator. Calls run on gRPC's threads; the script is set
// before the first one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::client {

class FakeServer final : public v1::InferenceService::Service {
 public:
  explicit FakeServer(bool is_replica = false) : replica_(*this) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    if (is_replica) builder.RegisterService(&replica_);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // The script. By default every stream sends these texts, one token each, and ends by LENGTH.
  std::vector<std::string> texts = {"Hello", ", ", "world"};
  std::vector<std::string> models = {"fake"};
  grpc::Status stream_status;    // after the chunks
  int64_t skip_sequence_at = 0;  // that chunk claims the next one's number
  bool hold = false;             // stay open until the client cancels
  bool draining = false;

  v1::GenerationSpec last_spec() const {
    const std::lock_guard lock(mutex_);
    return last_spec_;
  }
  int streams() const { return streams_; }
  int most_at_once() const { return most_at_once_; }
  bool saw_cancel() const { return saw_cancel_; }

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    for (const std::string& name : models) {
      v1::Model& model = *response->add_models();
      model.set_name(name);
      model.set_vocab_size(1000);
      model.set_supports_chat(name != "plain");
    }
    return grpc::Status::OK;
  }

  grpc::Status StreamGenerate(grpc::ServerContext* context,
                              const v1::StreamGenerateRequest* request,
                              grpc::ServerWriter<v1::StreamGenerateResponse>* writer) override {
    NoteStart(request->spec());
    int64_t sequence_number = 0;
    const int candidates = request->spec().output().has_n() ? request->spec().output().n() : 1;
    for (size_t i = 0; i < texts.size(); ++i) {
      for (int32_t candidate = 0; candidate < candidates; ++candidate) {
        v1::StreamGenerateResponse chunk;
        if (++sequence_number == 1) FillInfo(request->spec(), *chunk.mutable_info());
        chunk.set_sequence_number(sequence_number + (sequence_number == skip_sequence_at ? 1 : 0));
        chunk.set_candidate_index(candidate);
        chunk.set_text_delta(texts[i]);
        chunk.add_token_ids(static_cast<int32_t>(i) + 10);
        const bool last = i + 1 == texts.size() && stream_status.ok() && !hold;
        if (last) chunk.set_finish_reason(v1::FINISH_REASON_LENGTH);
        if (last && candidate + 1 == candidates) {
          chunk.mutable_usage()->set_prompt_tokens(3);
          chunk.mutable_usage()->set_output_tokens(static_cast<int32_t>(texts.size()) * candidates);
        }
        writer->Write(chunk);
      }
    }
    while (hold && !context->IsCancelled())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (context->IsCancelled()) saw_cancel_ = true;
    --open_;
    return stream_status;
  }

 private:
  class Replica final : public v1::WorkerService::Service {
   public:
    explicit Replica(FakeServer& server) : server_(server) {}
    grpc::Status WatchStatus(grpc::ServerContext* context, const v1::WatchStatusRequest*,
                             grpc::ServerWriter<v1::WatchStatusResponse>* writer) override {
      v1::WatchStatusResponse status;
      status.set_epoch("epoch-1");
      status.set_running(7);
      status.set_draining(server_.draining);
      status.set_making_progress(true);
      writer->Write(status);
      while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return grpc::Status::OK;
    }

   private:
    FakeServer& server_;
  };

  static void FillInfo(const v1::GenerationSpec& spec, v1::StreamInfo& info) {
    info.set_request_id("request-1");
    info.set_seed(spec.sampling().has_seed() ? spec.sampling().seed() : 18446744073709551615ull);
    info.set_model(spec.model());
    info.set_numerics_id("00ff");
  }
  void NoteStart(const v1::GenerationSpec& spec) {
    const std::lock_guard lock(mutex_);
    last_spec_ = spec;
    ++streams_;
    ++open_;
    if (open_ > most_at_once_) most_at_once_ = open_.load();
  }

  mutable std::mutex mutex_;
  v1::GenerationSpec last_spec_;  // guarded by mutex_
  std::atomic<int> streams_{0}, open_{0}, most_at_once_{0};
  std::atomic<bool> saw_cancel_{false};
  Replica replica_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;  // last: its calls use all of the above
};

}  // namespace qserve::client
