#include "worker/group/rank_identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "worker/group/wire.h"

namespace qserve::worker::group {
namespace {

constexpr size_t kMaxIdentityBytes = 4096;
constexpr size_t kMaxHostBytes = 1024;

std::optional<RankIdentity> Decode(std::string_view bytes) {
  WireReader reader(bytes);
  RankIdentity identity;
  identity.rank = static_cast<int>(reader.U32());
  identity.size = static_cast<int>(reader.U32());
  identity.local_rank = static_cast<int>(reader.U32());
  identity.local_size = static_cast<int>(reader.U32());
  identity.node_rank = static_cast<int>(reader.U32());
  identity.generation = reader.U64();
  identity.group_secret = reader.Bytes(kMaxSecretBytes);
  identity.config_hash = reader.Bytes(kMaxConfigHashBytes);
  identity.rendezvous.host = reader.Bytes(kMaxHostBytes);
  identity.rendezvous.port = static_cast<uint16_t>(reader.U32());
  identity.bind_host = reader.Bytes(kMaxHostBytes);
  identity.heartbeat_interval = std::chrono::milliseconds(reader.U32());
  identity.supervisor_pid = static_cast<int>(reader.U32());
  if (!reader.complete()) return std::nullopt;
  return identity;
}

}  // namespace

Hello RankIdentity::ToHello() const {
  Hello hello;
  hello.role = Role::kRank;
  hello.index = static_cast<uint32_t>(rank);
  hello.count = static_cast<uint32_t>(size);
  hello.generation = generation;
  hello.secret = group_secret;
  hello.config_hash = config_hash;
  return hello;
}

std::string EncodeIdentity(const RankIdentity& identity) {
  WireWriter writer;
  for (const int number : {identity.rank, identity.size, identity.local_rank, identity.local_size,
                           identity.node_rank}) {
    writer.U32(static_cast<uint32_t>(number));
  }
  writer.U64(identity.generation);
  writer.Bytes(identity.group_secret);
  writer.Bytes(identity.config_hash);
  writer.Bytes(identity.rendezvous.host);
  writer.U32(identity.rendezvous.port);
  writer.Bytes(identity.bind_host);
  const auto interval = std::chrono::ceil<std::chrono::milliseconds>(identity.heartbeat_interval);
  writer.U32(static_cast<uint32_t>(interval.count()));
  writer.U32(static_cast<uint32_t>(identity.supervisor_pid));
  return writer.Take();
}

absl::StatusOr<std::optional<RankIdentity>> RankIdentityFromEnvironment() {
  const char* variable = std::getenv(kRankFdVariable);
  if (variable == nullptr) return std::nullopt;
  const std::string_view text = variable;
  int fd = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), fd);
  std::array<char, kMaxIdentityBytes> bytes;
  ssize_t got = -1;
  if (error == std::errc() && end == text.data() + text.size() && fd > 2) {
    got = recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
  }
  std::optional<RankIdentity> identity;
  if (got > 0) identity = Decode({bytes.data(), static_cast<size_t>(got)});
  if (!identity.has_value()) {
    return absl::FailedPreconditionError(fmt::format(
        "{} is set by supervisors for their ranks and must not be set otherwise", kRankFdVariable));
  }
  unsetenv(kRankFdVariable);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  identity->control_fd = fd;
  // Gloo writes to sockets without asking for errors instead of the signal.
  signal(SIGPIPE, SIG_IGN);
  // The supervisor asked for this before it started the program; once more, in case the program was
  // started through another.
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return ErrnoStatus("prctl", errno);
  if (getppid() != identity->supervisor_pid) {
    return absl::AbortedError("the supervisor of this rank is gone");
  }
  return identity;
}

}  // namespace qserve::worker::group
