// What a rank's process does from its first to its last line: join the group, load its share of the
// model, then lead or follow.
#pragma once

#include "absl/status/status.h"
#include "worker/flags.h"
#include "worker/group/rank_identity.h"

namespace qserve::worker {

// Blocks until the replica ends; OK after a drain. Main thread, before other threads exist.
absl::Status RunRank(const Flags& flags, const group::RankIdentity& identity);

}  // namespace qserve::worker
