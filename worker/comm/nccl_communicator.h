// Collectives between GPUs, one rank each, by NCCL, in the order of the backend's operations. NCCL
// only moves bytes: its own all-reduce is never used, since the order of its sums depends on the
// message; a kernel adds in rank order (kernels/cuda/rank_sum.h). Made by worker/exec/rank.cc.
//
// Nothing here waits for the device. Work is issued only while the backend's stream owner is
// issuing; while a graph is recorded the work becomes part of it, and replaying the graph repeats
// it without a call. The backend owns the graphs; since they hold work of this communicator, its
// destructor has them dropped first (CudaStreamOwner::DropGraphs), and the backend outlives it.
//
// A watchdog (nccl_watch.h) looks for failures of other ranks and for a stream that has not passed
// a mark in time. Either fails the step, then aborts NCCL's communicator, so that kernels that wait
// for a lost peer end; whoever waits for the stream wakes up and finds the failure. After that
// every collective fails, and the process is of no further use: its group starts anew.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "worker/comm/communicator.h"
#include "worker/comm/nccl_api.h"
#include "worker/group/key_value_store.h"

namespace qserve::worker::comm {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  uint64_t generation = 0;           // of the group: ids of other generations are refused
  std::string key_prefix = "nccl/";  // of this communicator's keys in the store
  Duration connect_timeout = std::chrono::seconds(120);
  // The longest that the stream may take between two marks: a step, as long as one rank may be
  // behind another within it. A dead peer is noticed by its supervisor; this is the last resort.
  Duration step_timeout = std::chrono::minutes(10);
  Duration watch_interval = std::chrono::milliseconds(100);
  // AllReduceSum of at most this many bytes is one exchange of whole messages, above it each rank
  // adds a part. Same bits.
  int64_t one_shot_bytes = 512 << 10;
  int64_t workspace_bytes = 64 << 20;  // device memory of this communicator
};

// Connects to every other rank; all must call, on the thread that uses the backend. `store` is
// needed during the call only; `backend` must be a CUDA backend (FailedPrecondition otherwise) and
// outlive the communicator. Unavailable or DeadlineExceeded when the others did not come or the
// machine has no libnccl.so.2; Unimplemented in a build without CUDA.
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options,
                                                                     group::KeyValueStore* store,
                                                                     kernels::Backend* backend);

// The same over a given implementation of NCCL; `owner` is `backend`'s stream.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const NcclOptions& options,
                                                          group::KeyValueStore* store,
                                                          kernels::Backend* backend,
                                                          kernels::cuda::CudaStreamOwner* owner,
                                                          std::unique_ptr<NcclApi> api);

// Whether the backend is a GPU: its memory is not the host's.
bool OnGpu(const kernels::Backend& backend);

// True if each rank of the group has a GPU of its own, as NCCL wants it: the ranks tell each other
// which ones they have. Every rank must call, with the same options; all get the same answer. False
// in a build without NCCL. Of the GPU that is current on the calling thread, which is its
// backend's.
absl::StatusOr<bool> RanksHaveGpusOfTheirOwn(const NcclOptions& options,
                                             group::KeyValueStore* store);

}  // namespace qserve::worker::comm
