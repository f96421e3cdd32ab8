// A rank as its supervisor sees it: a child process, its end, its signs of life. Used by the
// supervisor, on its thread.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/heartbeat.h"
#include "worker/group/rank_identity.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

class RankProcess {
 public:
  // Runs this program's own binary again with the same arguments, as the rank `identity` says. Must
  // be called by the main thread of a single-threaded process: the child dies with the thread that
  // made it. The child is in a process group of its own (so that Ctrl-C reaches the supervisor
  // alone) and has an empty signal mask.
  static absl::StatusOr<RankProcess> Spawn(const RankIdentity& identity,
                                           std::span<char* const> argv);
  RankProcess(RankProcess&&) = default;
  RankProcess& operator=(RankProcess&&) = default;

  int rank() const { return rank_; }
  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  int control_fd() const { return control_fd_.get(); }

  bool running() const { return running_; }
  // After the end: 0 = exited so; otherwise how it ended.
  bool ended_well() const { return !running_ && exit_code_ == 0 && signal_ == 0; }
  int signal() const { return signal_; }        // 0 unless killed by one
  int exit_code() const { return exit_code_; }  // 0 if killed by a signal
  std::string HowEnded() const;

  // Looks whether it has ended; true once, when it just has.
  bool Reap();
  void Signal(int signal_number);
  void TellLoss(const std::string& reason);
  // Reads all beats that have come; true if there was one.
  bool ReadBeats();
  const Beat& last_beat() const { return beat_; }
  bool has_beaten() const { return has_beaten_; }

  Duration silence{0};  // since the last beat, counted by the supervisor

 private:
  RankProcess() = default;
  int rank_ = 0;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  UniqueFd control_fd_;
  bool running_ = true;
  int exit_code_ = 0;
  int signal_ = 0;
  bool has_beaten_ = false;
  Beat beat_;
};

}  // namespace qserve::worker::group
