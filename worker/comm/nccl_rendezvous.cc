#include "worker/comm/nccl_rendezvous.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::worker::comm {
namespace {

std::string Key(const NcclOptions& options, const std::string& what) {
  return fmt::format("{}{}/{}", options.key_prefix, options.generation, what);
}

// What stands in front of an id.
std::string Header(const NcclOptions& options) {
  return fmt::format("qserve-nccl generation={} size={} id=", options.generation, options.size);
}

}  // namespace

absl::StatusOr<std::string> ShareNcclId(const NcclOptions& options, group::KeyValueStore* store,
                                        const std::string& mine) {
  const std::string header = Header(options);
  if (options.rank == 0) {
    RETURN_IF_ERROR(store->Set(Key(options, "id"), header + mine));
    return mine;
  }
  ASSIGN_OR_RETURN(const std::string value,
                   store->Get(Key(options, "id"), options.connect_timeout));
  if (value.compare(0, header.size(), header) != 0) {
    return absl::FailedPreconditionError(
        fmt::format("rank {} met the NCCL id of another group: it begins with '{}', not '{}'",
                    options.rank, value.substr(0, std::min<size_t>(value.find("id="), 64)),
                    header.substr(0, header.size() - 3)));
  }
  return value.substr(header.size());
}

absl::StatusOr<std::vector<std::string>> ShareWithAll(const NcclOptions& options,
                                                      group::KeyValueStore* store,
                                                      const std::string& what,
                                                      const std::string& mine) {
  const auto key = [&](int rank) { return Key(options, fmt::format("{}/{}", what, rank)); };
  RETURN_IF_ERROR(store->Set(key(options.rank), mine));
  std::vector<std::string> all;
  for (int rank = 0; rank < options.size; ++rank) {
    if (rank == options.rank) {
      all.push_back(mine);
      continue;
    }
    ASSIGN_OR_RETURN(std::string theirs, store->Get(key(rank), options.connect_timeout));
    all.push_back(std::move(theirs));
  }
  return all;
}

bool OnGpu(const kernels::Backend& backend) {
  return dynamic_cast<const kernels::cuda::CudaStreamOwner*>(&backend) != nullptr;
}

bool AllDiffer(std::vector<std::string> identities) {
  std::sort(identities.begin(), identities.end());
  return std::adjacent_find(identities.begin(), identities.end()) == identities.end() &&
         (identities.empty() || !identities.front().empty());
}

}  // namespace qserve::worker::comm
