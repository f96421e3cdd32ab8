// Shows what the thread sanitizer sees beside an uninstrumented gRPC (tests/sanitizers/README.md).
//
//   race_on_purpose own      two threads of ours race: must be reported
//   race_on_purpose service  a thread of ours races with a method that gRPC calls: must be reported
//   race_on_purpose reactor  a thread of ours races with a stream's reaction: must be reported
//   race_on_purpose ordered  what is handed on through gRPC is no race: must not be reported
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdio>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "qserve/v1/inference.grpc.pb.h"

namespace qserve {
namespace {

// Not atomic, on purpose.
struct Counter {
  int64_t value = 0;
};

class CountingService final : public v1::InferenceService::CallbackService {
 public:
  explicit CountingService(Counter& counter) : counter_(counter) {}
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest*, v1::TokenizeResponse*) override {
    ++counter_.value;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerWriteReactor<v1::StreamGenerateResponse>* StreamGenerate(
      grpc::CallbackServerContext*, const v1::StreamGenerateRequest*) override {
    return new ThreeChunks;  // deletes itself in OnDone
  }

 private:
  class ThreeChunks final : public grpc::ServerWriteReactor<v1::StreamGenerateResponse> {
   public:
    ThreeChunks() { StartWrite(&chunk_); }
    void OnWriteDone(bool ok) override {
      chunk_.set_sequence_number(chunk_.sequence_number() + 1);
      if (ok && chunk_.sequence_number() < 3) {
        StartWrite(&chunk_);
      } else {
        Finish(grpc::Status::OK);
      }
    }
    void OnDone() override { delete this; }

   private:
    v1::StreamGenerateResponse chunk_;
  };
  Counter& counter_;
};

// A stream that counts on gRPC's threads: `handed` is handed on through gRPC from who starts it and
// to who waits for it, `reactions` belongs to the reactions alone.
class CountingStream final : public grpc::ClientReadReactor<v1::StreamGenerateResponse> {
 public:
  CountingStream(v1::InferenceService::Stub& stub, Counter& handed, Counter& reactions)
      : handed_(handed), reactions_(reactions) {
    ++handed_.value;
    stub.async()->StreamGenerate(&context_, &request_, this);
    StartRead(&chunk_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    ++handed_.value;
    ++reactions_.value;
    if (ok) StartRead(&chunk_);
  }
  void OnDone(const grpc::Status& status) override { done_.set_value(status.ok()); }
  bool Wait() { return done_.get_future().get(); }

 private:
  Counter& handed_;
  Counter& reactions_;
  grpc::ClientContext context_;
  v1::StreamGenerateRequest request_;
  v1::StreamGenerateResponse chunk_;
  std::promise<bool> done_;
};

// Writes without asking anybody, until told to stop through an order that the sanitizer ignores.
class Meddler {
 public:
  explicit Meddler(Counter& counter)
      : thread_([this, &counter] {
          while (!stop_.load(std::memory_order_relaxed)) {
            ++counter.value;
            std::this_thread::yield();
          }
        }) {}
  ~Meddler() {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
  }

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

bool RunOwn() {
  Counter counter;
  const Meddler first(counter);
  const Meddler second(counter);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  return true;
}

bool Run(std::string_view mode) {
  if (mode == "own") return RunOwn();
  Counter service_counter;
  Counter handed;
  Counter reactions;
  CountingService service(service_counter);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = v1::InferenceService::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  bool ok = true;
  std::unique_ptr<Meddler> meddler;
  if (mode == "service") meddler = std::make_unique<Meddler>(service_counter);
  if (mode == "reactor") meddler = std::make_unique<Meddler>(reactions);
  for (int i = 0; i < 20; ++i) {
    CountingStream stream(*stub, handed, reactions);
    ok = stream.Wait() && ok;
    ++handed.value;
    if (mode == "ordered") continue;
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    ok = stub->Tokenize(&context, v1::TokenizeRequest(), &response).ok() && ok;
  }
  return ok;
}

}  // namespace
}  // namespace qserve

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const bool ok = qserve::Run(argv[1]);
  std::printf("%s: %s\n", argv[1], ok ? "ran" : "failed");
  return ok ? 0 : 1;
}
