// qserve-worker: one replica. Started by a user it is the supervisor of a group; started by a
// supervisor it is one of its ranks (worker/group/README.md).
#include <fmt/format.h>

#include <cstdlib>
#include <span>

#include "common/cli/options.h"
#include "common/hashing.h"
#include "common/log.h"
#include "worker/exec/executor_options.h"
#include "worker/flags.h"
#include "worker/group/rank_identity.h"
#include "worker/group/supervisor.h"
#include "worker/rank_process.h"

namespace qserve::worker {
namespace {

// The secret that several nodes share is taken from the environment only: command lines are seen by
// everybody on a machine.
constexpr const char* kSecretVariable = "QSERVE_RENDEZVOUS_SECRET";

absl::StatusOr<group::GroupOptions> GroupOptionsOf(const Flags& flags) {
  auto executor = ExecutorOptionsOf(flags, 0);
  if (!executor.ok()) return executor.status();
  const char* secret = std::getenv(kSecretVariable);
  group::GroupOptions options;
  options.tensor_parallel_size = flags.tensor_parallel_size;
  options.nodes = flags.nodes;
  options.node_rank = flags.node_rank;
  options.rendezvous = flags.rendezvous;
  options.user_secret = secret == nullptr ? "" : secret;
  options.config_hash = HexDigest(exec::GroupConfigHash(*executor));
  return options;
}

int Fail(const absl::Status& status) {
  LOG_ERROR("{}", std::string(status.message()));
  return EXIT_FAILURE;
}

int RunAsRank(Flags& flags, const group::RankIdentity& identity) {
  if (const absl::Status status = ResolveDegree(flags, identity.size); !status.ok()) {
    return Fail(status);
  }
  const absl::Status status = RunRank(flags, identity);
  return status.ok() ? EXIT_SUCCESS : Fail(status);
}

int RunAsSupervisor(const cli::Options& options, Flags& flags, std::span<char* const> arguments) {
  for (const std::string& variable : options.UnknownVariables()) {
    if (variable != kSecretVariable) LOG_WARN("{} is not an option of this program", variable);
  }
  if (const absl::Status status = ResolveDegree(flags, 0); !status.ok()) return Fail(status);
  if (const absl::Status status = Validate(flags); !status.ok()) return Fail(status);
  const auto group_options = GroupOptionsOf(flags);
  if (!group_options.ok()) return Fail(group_options.status());
  return group::RunSupervisor(*group_options, arguments);
}

int Main(int argc, char** argv) {
  const auto identity = group::RankIdentityFromEnvironment();
  Flags flags;
  cli::Options options("qserve-worker",
                       "Serves a language model over gRPC: one replica of one or more ranks");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  const bool is_rank = identity.ok() && identity->has_value();
  const std::string name = is_rank ? fmt::format("rank {}", (*identity)->rank) : "supervisor";
  if (const absl::Status status = InitLogging(name, flags.log_level, flags.log_format);
      !status.ok()) {
    return Fail(status);
  }
  if (!identity.ok()) return Fail(identity.status());
  return is_rank ? RunAsRank(flags, **identity)
                 : RunAsSupervisor(options, flags, {argv, static_cast<size_t>(argc)});
}

}  // namespace
}  // namespace qserve::worker

int main(int argc, char** argv) { return qserve::worker::Main(argc, argv); }
