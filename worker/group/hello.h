// How a process proves that it belongs to the group, on every connection between processes: its
// first message says who it is and shows the secret; the answer is a welcome or a refusal with the
// reason. Used by the rendezvous, the supervisors and worker/comm's host group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/frame.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

inline constexpr size_t kMaxHelloBytes =
    1024;  // the cap on messages of a peer that is not known yet
inline constexpr size_t kMaxSecretBytes = 256;
inline constexpr size_t kMaxConfigHashBytes = 128;

enum class Role : uint8_t { kNode = 1, kRank = 2 };

struct Hello {
  Role role = Role::kRank;
  uint32_t index = 0;       // node or rank
  uint32_t count = 0;       // nodes or ranks
  uint64_t generation = 0;  // of the group; 0: not known yet (nodes)
  std::string secret;       // of the user (nodes) or of the group (ranks)
  std::string config_hash;  // must be equal at both ends
};

std::string EncodeHello(const Hello& hello);
std::optional<Hello> DecodeHello(std::string_view bytes);

// OK, or PermissionDenied with the reason for which `offered` is refused by an end that is as
// `expected` says (its index is not looked at). The secret is compared first, in constant time: who
// does not know it learns nothing else.
absl::Status CheckHello(const Hello& offered, const Hello& expected);

struct Welcome {
  uint64_t generation = 0;
  std::string group_secret;
};
std::string EncodeWelcome(const Welcome& welcome);
std::string EncodeRefusal(bool may_retry, std::string_view why);

// Connects to `to`, says hello, waits for the answer. PermissionDenied when refused for good,
// ResourceExhausted when it may be tried again (both with the other end's reason), Unavailable when
// not reached, DeadlineExceeded, Cancelled by `wake_fd`. The channel accepts messages of up to
// `max_payload` bytes. `welcome` may be null.
absl::StatusOr<FrameChannel> SayHello(const Endpoint& to, const Hello& hello, size_t max_payload,
                                      TimePoint deadline, int wake_fd, Welcome* welcome);

}  // namespace qserve::worker::group
