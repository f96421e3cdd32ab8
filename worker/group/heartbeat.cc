#include "worker/group/heartbeat.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "common/status_macros.h"
#include "worker/group/wire.h"

namespace qserve::worker::group {
namespace {

int64_t NowNs() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

}  // namespace

std::string EncodeBeat(const Beat& beat) {
  WireWriter writer;
  writer.U8(beat.busy ? 1 : 0);
  writer.U64(beat.progress_age_ms);
  return writer.Take();
}

bool DecodeBeat(std::string_view bytes, Beat* beat) {
  WireReader reader(bytes);
  beat->busy = reader.U8() != 0;
  beat->progress_age_ms = reader.U64();
  return reader.complete();
}

absl::StatusOr<std::unique_ptr<Heartbeat>> Heartbeat::Start(
    const RankIdentity& identity, std::function<void(const std::string&)> on_loss) {
  ASSIGN_OR_RETURN(UniqueFd wake_fd, NewWakeFd());
  return std::unique_ptr<Heartbeat>(
      new Heartbeat(identity, std::move(on_loss), std::move(wake_fd)));
}

Heartbeat::Heartbeat(const RankIdentity& identity, std::function<void(const std::string&)> on_loss,
                     UniqueFd wake_fd)
    : control_fd_(identity.control_fd),
      wake_fd_(std::move(wake_fd)),
      interval_(identity.heartbeat_interval),
      on_loss_(std::move(on_loss)),
      progress_ns_(NowNs()),
      thread_([this] { Run(); }) {}

Heartbeat::~Heartbeat() {
  SignalWakeFd(wake_fd_.get());
  thread_.join();
}

void Heartbeat::SetBusy(bool busy) {
  if (busy && !busy_) progress_ns_ = NowNs();
  busy_ = busy;
}

void Heartbeat::NoteProgress() { progress_ns_ = NowNs(); }

void Heartbeat::Run() {
  while (true) {
    Beat beat;
    beat.busy = busy_;
    beat.progress_age_ms =
        static_cast<uint64_t>(std::max<int64_t>(NowNs() - progress_ns_, 0) / 1'000'000);
    const std::string bytes = EncodeBeat(beat);
    // A full socket means that the supervisor is slow to read, and that it has signs of life to
    // read.
    [[maybe_unused]] const ssize_t sent =
        send(control_fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    const absl::Status woken = WaitFor(
        control_fd_.get(), POLLIN, std::chrono::steady_clock::now() + interval_, wake_fd_.get());
    if (absl::IsCancelled(woken)) return;
    if (woken.ok() && !Listen()) return;
  }
}

bool Heartbeat::Listen() {
  std::array<char, 8192> bytes;
  const ssize_t got = recv(control_fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  on_loss_(got > 0 ? std::string(bytes.data(), static_cast<size_t>(got))
                   : std::string("the supervisor is gone"));
  return false;
}

}  // namespace qserve::worker::group
