// One generation from the engine's events to messages of the public API. The gRPC reactor that owns
// it writes what Next gives; the engine never waits for either. Guarded by whoever owns it: one
// thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "qserve/v1/inference.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/token_channel.h"
#include "worker/serve/candidate_output.h"

namespace qserve::worker::serve {

class Generation {
 public:
  // `request`'s channel is set by the caller before it is submitted.
  Generation(const ServedModel& model, engine::Engine& engine, ParsedRequest request);

  // What Submit takes; once.
  engine::EngineRequest TakeEngineRequest() { return std::move(engine_request_); }

  // Works off events; candidates whose stop string matched are cancelled in the engine. Once failed
  // nothing more is heard.
  void Consume(const std::vector<engine::TokenEvent>& events);

  // The replica's time is up: unless every end is known the call fails with UNAVAILABLE DRAINING,
  // so that it goes on elsewhere, and nothing more is computed for it here.
  void CutShort();

  // Every candidate's end is known: a unary answer can be filled.
  bool complete() const;

  // The next chunk to send, or false if there is nothing to say yet. Several events become one
  // chunk when the client is slow.
  bool Next(v1::StreamGenerateResponse& chunk);

  // Every candidate has ended and its last chunk has been taken.
  bool done() const { return done_; }
  // Why the call ends: OK, or the engine's failure, a queue time-out, the replica's end. Valid when
  // done or failed.
  bool failed() const { return !status_.ok(); }
  const grpc::Status& status() const { return status_; }

  const std::string& request_id() const { return request_id_; }
  engine::RequestId id() const { return id_; }
  bool first_chunk_sent() const { return sequence_number_ > 0; }

  // Everything at once, for the unary call. Precondition: complete().
  void FillResponse(v1::GenerateResponse& response);

 private:
  void Fail(const engine::TokenEvent& event);
  void FillChunk(size_t candidate, OutputDelta delta, v1::StreamGenerateResponse& chunk);
  void FillLogprobs(const plan::SampledToken& token, v1::PositionLogprobs& out) const;
  void NoteUsage(const engine::Usage& usage);
  void FillUsage(v1::Usage& usage) const;

  const ServedModel& model_;
  engine::Engine& engine_;
  engine::RequestId id_;
  std::string request_id_;
  uint64_t seed_;
  TimePoint queue_deadline_;
  OutputOptions options_;
  engine::EngineRequest engine_request_;
  std::vector<CandidateOutput> outputs_;
  std::vector<bool> ended_;  // its last chunk has been taken
  engine::Usage usage_;
  int64_t sequence_number_ = 0;
  int64_t tokens_sent_ = 0;    // in chunks taken
  size_t next_candidate_ = 0;  // round robin, so that no candidate starves the others
  bool done_ = false;
  grpc::Status status_;
};

}  // namespace qserve::worker::serve
