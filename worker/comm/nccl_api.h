// What the communicator needs of NCCL, of one communicator of it: an interface, so that tests run
// the whole logic between threads of one process. Implemented by nccl_library.cc, where CUDA is
// built in, and by tests. Calls return without waiting, and come from one thread at a time, though
// not from the same one; but for MarkState, Abort and ErrorText, which may come while another
// thread is in a call, even one that hangs.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/stream.h"

namespace qserve::worker::comm {

enum class NcclResult : uint8_t {
  kOk,
  kInProgress,  // begun; State says when it is done, and nothing else may be called until then
  kFailed,      // ErrorText says why
};

class NcclApi {
 public:
  virtual ~NcclApi() = default;

  // A name for a new group, made by one rank and given to all: opaque bytes.
  virtual NcclResult NewId(std::string* id) = 0;
  // Begins to connect; every rank must.
  virtual NcclResult Connect(int size, int rank, const std::string& id) = 0;
  // Of what was begun last, and of the connections since: failures of other ranks show here.
  virtual NcclResult State() = 0;

  // Enqueued on the stream. Between GroupStart and GroupEnd they are begun together by GroupEnd,
  // whose result counts. Send and Receive stand in a group, also alone: outside of one, some
  // versions of NCCL call them done before they are on the stream.
  virtual NcclResult GroupStart() = 0;
  virtual NcclResult GroupEnd() = 0;
  virtual NcclResult Send(const void* data, int64_t bytes, int peer,
                          kernels::cuda::StreamHandle stream) = 0;
  virtual NcclResult Receive(void* data, int64_t bytes, int peer,
                             kernels::cuda::StreamHandle stream) = 0;
  // all[r * bytes ...] = rank r's `mine`, which may be its place in `all`.
  virtual NcclResult AllGather(const void* mine, void* all, int64_t bytes,
                               kernels::cuda::StreamHandle stream) = 0;
  virtual NcclResult Broadcast(void* data, int64_t bytes, int root,
                               kernels::cuda::StreamHandle stream) = 0;

  // A mark in the stream behind all that was enqueued so far; at most one at a time.
  virtual NcclResult Mark(kernels::cuda::StreamHandle stream) = 0;
  // kInProgress until the stream has reached it.
  virtual NcclResult MarkState() = 0;

  // Ends what runs on the device, with whatever result; after it only the destructor and ErrorText
  // are called.
  virtual void Abort() = 0;
  // Begins to disconnect in good order; State as above.
  virtual NcclResult Disconnect() = 0;
  // Of the last failure, that the calling thread has just been told of.
  virtual std::string ErrorText() const = 0;
};

}  // namespace qserve::worker::comm
