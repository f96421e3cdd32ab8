// A replica that reports to be ready and finishes nothing that it is asked: it refuses with a
// status of the test's choice, or keeps the call until somebody cuts it off. gRPC's threads run it;
// made and destroyed by the test.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "qserve/v1/inference.grpc.pb.h"
#include "qserve/v1/worker.grpc.pb.h"

namespace qserve::integration {

class BrokenReplica {
 public:
  explicit BrokenReplica(grpc::StatusCode code = grpc::StatusCode::UNAVAILABLE,
                         bool keeps_calls = false)
      : inference_(code, keeps_calls) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&inference_);
    builder.RegisterService(&worker_);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
  }
  ~BrokenReplica() { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int64_t asked() const { return inference_.asked; }

 private:
  class Inference final : public v1::InferenceService::Service {
   public:
    Inference(grpc::StatusCode code, bool keeps_calls) : code_(code), keeps_calls_(keeps_calls) {}
    grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest*,
                          v1::GenerateResponse*) override {
      return Break(*context);
    }
    grpc::Status StreamGenerate(grpc::ServerContext* context, const v1::StreamGenerateRequest*,
                                grpc::ServerWriter<v1::StreamGenerateResponse>*) override {
      return Break(*context);
    }
    grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                            v1::ListModelsResponse* response) override {
      response->add_models()->set_name("demo");
      return grpc::Status::OK;
    }
    grpc::Status CountTokens(grpc::ServerContext* context, const v1::CountTokensRequest*,
                             v1::CountTokensResponse*) override {
      return Break(*context);
    }
    grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest*,
                          v1::TokenizeResponse*) override {
      return Break(*context);
    }
    grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest*,
                            v1::DetokenizeResponse*) override {
      return Break(*context);
    }
    std::atomic<int64_t> asked{0};

   private:
    grpc::Status Break(grpc::ServerContext& context) {
      ++asked;
      while (keeps_calls_ && !context.IsCancelled())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return {code_, "broken"};
    }
    const grpc::StatusCode code_;
    const bool keeps_calls_;
  };

  class Worker final : public v1::WorkerService::Service {
    grpc::Status WatchStatus(grpc::ServerContext* context, const v1::WatchStatusRequest*,
                             grpc::ServerWriter<v1::WatchStatusResponse>* writer) override {
      v1::WatchStatusResponse status;
      status.set_epoch("broken");
      status.add_models("demo");
      status.set_numerics_id("numerics-a");
      status.set_making_progress(true);
      while (!context->IsCancelled() && writer->Write(status))
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      return grpc::Status::OK;
    }
  };

  Inference inference_;
  Worker worker_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace qserve::integration
