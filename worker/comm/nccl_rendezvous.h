// What ranks tell each other through the group's key-value store before NCCL connects them. Used by
// nccl_communicator.cc, on the thread that starts the rank; needs neither NCCL nor a GPU.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/group/key_value_store.h"

namespace qserve::worker::comm {

// The name of NCCL's group: rank 0 gives `mine`, the others get it. The key and the value carry the
// generation and the size, so that what an earlier or another group left behind is never taken:
// FailedPrecondition when it is met.
absl::StatusOr<std::string> ShareNcclId(const NcclOptions& options, group::KeyValueStore* store,
                                        const std::string& mine);

// Everybody's `mine`, in rank order.
absl::StatusOr<std::vector<std::string>> ShareWithAll(const NcclOptions& options,
                                                      group::KeyValueStore* store,
                                                      const std::string& what,
                                                      const std::string& mine);

// True if no two are equal and none is empty.
bool AllDiffer(std::vector<std::string> identities);

}  // namespace qserve::worker::comm
