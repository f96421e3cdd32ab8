// What may be asked of a group (supervisor.h).
#include <fmt/format.h>

#include <string>

#include "worker/group/hello.h"
#include "worker/group/socket.h"
#include "worker/group/supervisor.h"

namespace qserve::worker::group {

absl::Status ValidateGroupOptions(const GroupOptions& options) {
  const auto wrong = [](const std::string& why) { return absl::InvalidArgumentError(why); };
  if (options.tensor_parallel_size < 1 || options.tensor_parallel_size > 1024) {
    return wrong("--tensor-parallel-size must be 1 to 1024");
  }
  if (options.nodes < 1) return wrong("--nodes must be at least 1");
  if (options.tensor_parallel_size % options.nodes != 0) {
    return wrong(fmt::format("--tensor-parallel-size {} does not divide by --nodes {}",
                             options.tensor_parallel_size, options.nodes));
  }
  if (options.node_rank < 0 || options.node_rank >= options.nodes) {
    return wrong(fmt::format("--node-rank must be 0 to {}", options.nodes - 1));
  }
  if (options.nodes > 1) {
    if (options.rendezvous.empty()) return wrong("--nodes needs --rendezvous HOST:PORT");
    const absl::StatusOr<Endpoint> endpoint = ParseEndpoint(options.rendezvous);
    if (!endpoint.ok()) {
      return wrong("--rendezvous: " + std::string(endpoint.status().message()));
    }
    if (endpoint->port == 0) return wrong("--rendezvous needs a port that the other nodes know");
  }
  if (options.user_secret.size() > kMaxSecretBytes) {
    return wrong(fmt::format("the rendezvous secret is longer than {} bytes", kMaxSecretBytes));
  }
  if (options.config_hash.size() > kMaxConfigHashBytes) {
    return wrong("the configuration hash is too long");
  }
  return absl::OkStatus();
}

}  // namespace qserve::worker::group
