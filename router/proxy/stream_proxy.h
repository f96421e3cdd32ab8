// One client stream: read a chunk from a replica, write it to the client, and so on; never more
// than one chunk in hand, so a slow client slows its own replica's stream and nothing else. When
// the replica goes, the stream goes on elsewhere (same numerics) or ends with STREAM_INTERRUPTED.
#pragma once

#include <memory>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include "common/clock.h"
#include "router/proxy/attempts.h"
#include "router/proxy/emitted.h"
#include "router/proxy/open_calls.h"
#include "router/proxy/router_probe.h"

namespace qserve::router {

class StreamProxy final : public grpc::ServerWriteReactor<v1::StreamGenerateResponse>,
                          public OpenCall,
                          public ClientCall {
 public:
  // For a call with room in `open_calls`. Deletes itself when it is over. References must outlive
  // it.
  StreamProxy(Registry& registry, RouterProbe& probe, OpenCalls& open_calls, const Clock& clock,
              grpc::CallbackServerContext& context, const v1::StreamGenerateRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnReplicaLost() override;
  void CutShort() override;

 private:
  class Upstream;

  // `cause`: why the attempt before this one ended; OK for the first.
  void StartNext(const grpc::Status& cause);
  void OnChunk(bool ok);
  void OnUpstreamDone(const grpc::Status& status);
  void End(const grpc::Status& status);
  void Interrupt(const grpc::Status& cause);

  RouterProbe& probe_;
  OpenCalls& open_calls_;
  const Clock& clock_;
  grpc::CallbackServerContext& context_;
  const v1::GenerationSpec spec_;
  Attempts attempts_;
  Emitted emitted_;
  const TimePoint arrival_;

  // Chunk, attempts and emitted are touched by one completion at a time: gRPC has one read or one
  // write of ours in flight, never both. Cancellation and loss come from outside and touch only
  // what the mutex guards.
  v1::StreamGenerateResponse chunk_;
  std::mutex mutex_;
  std::unique_ptr<Upstream> upstream_;  // guarded by mutex_ for outsiders
  bool client_gone_ = false;            // guarded by mutex_
  bool replica_lost_ = false;           // guarded by mutex_
  bool cut_short_ = false;              // guarded by mutex_
};

}  // namespace qserve::router
