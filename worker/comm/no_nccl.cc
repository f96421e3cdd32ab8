// Stands in nccl_library.cc's place where CUDA is not built in.
#include "worker/comm/nccl_communicator.h"

namespace qserve::worker::comm {

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions&,
                                                                     group::KeyValueStore*,
                                                                     kernels::Backend*) {
  return absl::UnimplementedError("this build has no NCCL: build with the preset cuda");
}

absl::StatusOr<bool> RanksHaveGpusOfTheirOwn(const NcclOptions&, group::KeyValueStore*) {
  return false;
}

}  // namespace qserve::worker::comm
