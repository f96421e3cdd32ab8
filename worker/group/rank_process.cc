#include "worker/group/rank_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#include "common/status_macros.h"

namespace qserve::worker::group {
namespace {

// The child between fork and exec. Only async-signal-safe calls, nothing returns.
[[noreturn]] void BecomeRank(pid_t supervisor, int control_fd, char* const* argv,
                             char* const* environment) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The supervisor may have died before that.
  if (getppid() != supervisor) _exit(125);
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  fcntl(control_fd, F_SETFD, 0);
  execve("/proc/self/exe", argv, environment);
  _exit(126);
}

std::vector<std::string> EnvironmentWith(int control_fd) {
  const std::string prefix = std::string(kRankFdVariable) + "=";
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with(prefix)) variables.emplace_back(*variable);
  }
  variables.push_back(prefix + std::to_string(control_fd));
  return variables;
}

}  // namespace

absl::StatusOr<RankProcess> RankProcess::Spawn(const RankIdentity& identity,
                                               std::span<char* const> argv) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return ErrnoStatus("socketpair", errno);
  }
  UniqueFd mine(ends[0]);
  const UniqueFd theirs(ends[1]);
  const std::string packet = EncodeIdentity(identity);
  if (send(mine.get(), packet.data(), packet.size(), MSG_NOSIGNAL) < 0) {
    return ErrnoStatus("send", errno);
  }
  std::vector<std::string> variables = EnvironmentWith(theirs.get());
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);
  std::vector<char*> arguments(argv.begin(), argv.end());
  arguments.push_back(nullptr);

  const pid_t supervisor = getpid();
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus("fork", errno);
  if (pid == 0) BecomeRank(supervisor, theirs.get(), arguments.data(), environment.data());
  RankProcess process;
  process.rank_ = identity.rank;
  process.pid_ = pid;
  process.control_fd_ = std::move(mine);
  process.pidfd_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!process.pidfd_.valid()) {
    const absl::Status status = ErrnoStatus("pidfd_open", errno);
    process.Signal(SIGKILL);
    waitpid(pid, nullptr, 0);
    return status;
  }
  return process;
}

std::string RankProcess::HowEnded() const {
  if (running_) return fmt::format("rank {} (pid {}) is running", rank_, pid_);
  if (signal_ != 0) {
    return fmt::format("rank {} (pid {}) was killed by signal {} ({})", rank_, pid_, signal_,
                       strsignal(signal_));
  }
  return fmt::format("rank {} (pid {}) ended with exit status {}", rank_, pid_, exit_code_);
}

bool RankProcess::Reap() {
  if (!running_) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
  running_ = false;
  if (WIFSIGNALED(status)) signal_ = WTERMSIG(status);
  if (WIFEXITED(status)) exit_code_ = WEXITSTATUS(status);
  return true;
}

void RankProcess::Signal(int signal_number) {
  // Not reaped yet, so the number cannot belong to another process.
  if (running_) kill(pid_, signal_number);
}

void RankProcess::TellLoss(const std::string& reason) {
  if (!running_) return;
  // A rank that cannot take it is killed when the grace is over.
  [[maybe_unused]] const ssize_t sent =
      send(control_fd_.get(), reason.data(), reason.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool RankProcess::ReadBeats() {
  bool any = false;
  std::array<char, 256> bytes;
  while (true) {
    const ssize_t got = recv(control_fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got <= 0) return any;
    if (!DecodeBeat({bytes.data(), static_cast<size_t>(got)}, &beat_)) continue;
    has_beaten_ = true;
    silence = Duration(0);
    any = true;
  }
}

}  // namespace qserve::worker::group
