#include <utility>

#include "common/check.h"
#include "kernels/cuda/emulator/emulator.h"

namespace qserve::kernels::cuda::emulator {

void Stream::Enqueue(std::function<void()> work) {
  (recording_ ? recorded_ : waiting_).push_back(std::move(work));
}

void Stream::Synchronize() {
  QSERVE_CHECK_MSG(!recording_, "emulator: a stream that records is not waited for");
  for (const std::function<void()>& work : std::exchange(waiting_, {})) work();
}

void Stream::BeginRecording() {
  QSERVE_CHECK(!recording_);
  recording_ = true;
}

std::vector<std::function<void()>> Stream::EndRecording() {
  QSERVE_CHECK(recording_);
  recording_ = false;
  return std::exchange(recorded_, {});
}

void Stream::Count(const Counters& launch) {
  counters_.mma_int8 += launch.mma_int8;
  counters_.mma_f16 += launch.mma_f16;
  counters_.load_matrix_phases += launch.load_matrix_phases;
  counters_.load_matrix_conflicts += launch.load_matrix_conflicts;
  counters_.copied_bytes += launch.copied_bytes;
}

DeviceError Enqueue(StreamHandle stream, LaunchShape shape, std::function<void()> body) {
  auto* to = static_cast<Stream*>(stream);
  shape.order_seed = to->order_seed();
  to->Enqueue([to, shape, body = std::move(body)] { to->Count(Launch(shape, body)); });
  return 0;
}

}  // namespace qserve::kernels::cuda::emulator
