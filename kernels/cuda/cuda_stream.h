// What others may know of a CUDA backend's stream: a communicator that moves device memory enqueues
// its work there, so that it runs between the operations before and after it. Implemented by
// CudaBackend; a communicator of GPUs finds it by a dynamic_cast of the Backend it is given. Used
// on the thread that uses the backend, inside Backend::Run or between steps.
#pragma once

#include "kernels/cuda/stream.h"
#include "kernels/status.h"

namespace qserve::kernels::cuda {

class CudaStreamOwner {
 public:
  virtual ~CudaStreamOwner() = default;

  // The stream of all operations. While a graph is recorded it is being captured: only work that
  // may be captured is enqueued then (no synchronization, no copies of pageable memory).
  // Asked for anew before every piece of work: a recording that the step has gone through and that
  // was held back for more inputs is launched first.
  virtual StreamHandle stream() = 0;

  // False while a recorded step is gone through to collect its inputs, and after a failure of the
  // step: nothing is enqueued then, because the graph holds the work, or because there is nothing
  // to go on with. Whoever enqueues asks before every piece of work.
  virtual bool Issuing() const = 0;

  // True while a graph is recorded.
  virtual bool Recording() const = 0;

  // Latches a failure of the step (Backend::Fail); the first one stays. From any thread: a
  // communicator's watchdog fails the step before it ends work that is under way on the device, so
  // that whoever then stops waiting for the stream finds the failure and no result.
  virtual void Fail(Status status) = 0;

  // Waits for the stream and forgets all recorded graphs; nothing is recorded from then on. Called
  // by a communicator whose work the graphs hold, before it goes away.
  virtual void DropGraphs() = 0;
};

}  // namespace qserve::kernels::cuda
