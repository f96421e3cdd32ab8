// A rank's sign of life: a thread of its own tells the supervisor that the process runs, and how
// long ago its executor made progress; the supervisor's word that the group is lost comes back the
// same way. Made first thing in a rank's main, before the model is loaded, so that long work is no
// silence.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "worker/group/rank_identity.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

// On the control socket (a message boundary is a packet's). Rank to supervisor: one Beat.
// Supervisor to rank: why the group is lost.
struct Beat {
  bool busy = false;
  uint64_t progress_age_ms = 0;  // since the last progress, or since it became busy
};
std::string EncodeBeat(const Beat& beat);
bool DecodeBeat(std::string_view bytes, Beat* beat);

class Heartbeat {
 public:
  // Takes identity.control_fd. `on_loss(reason)` is called once at most, from the heartbeat's
  // thread, when the supervisor says that the group has lost a member or when the supervisor is
  // gone: fail what is in flight, abort the collectives, exit non-zero; what still runs after the
  // supervisor's grace is killed.
  static absl::StatusOr<std::unique_ptr<Heartbeat>> Start(
      const RankIdentity& identity, std::function<void(const std::string&)> on_loss);
  ~Heartbeat();

  // Whether there is work that should be making progress. Any thread, cheap.
  void SetBusy(bool busy);
  // A step has finished. Any thread, cheap.
  void NoteProgress();

 private:
  Heartbeat(const RankIdentity& identity, std::function<void(const std::string&)> on_loss,
            UniqueFd wake_fd);
  void Run();
  // False when the supervisor has spoken or is gone.
  bool Listen();

  UniqueFd control_fd_;
  UniqueFd wake_fd_;
  Duration interval_;
  std::function<void(const std::string&)> on_loss_;
  std::atomic<bool> busy_{false};
  std::atomic<int64_t> progress_ns_;
  std::thread thread_;
};

}  // namespace qserve::worker::group
