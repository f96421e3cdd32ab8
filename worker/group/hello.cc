#include "worker/group/hello.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/status_macros.h"
#include "worker/group/secret.h"
#include "worker/group/wire.h"

namespace qserve::worker::group {
namespace {

constexpr uint32_t kMagic = 0x31525351;  // "QSR1"
constexpr size_t kMaxReasonBytes = 4096;
constexpr uint8_t kWelcome = 1;
constexpr uint8_t kRefused = 2;

}  // namespace

std::string EncodeHello(const Hello& hello) {
  WireWriter writer;
  writer.U32(kMagic);
  writer.U8(static_cast<uint8_t>(hello.role));
  writer.U32(hello.index);
  writer.U32(hello.count);
  writer.U64(hello.generation);
  writer.Bytes(hello.secret);
  writer.Bytes(hello.config_hash);
  return writer.Take();
}

std::optional<Hello> DecodeHello(std::string_view bytes) {
  WireReader reader(bytes);
  const bool magic = reader.U32() == kMagic;
  const uint8_t role = reader.U8();
  Hello hello;
  hello.index = reader.U32();
  hello.count = reader.U32();
  hello.generation = reader.U64();
  hello.secret = reader.Bytes(kMaxSecretBytes);
  hello.config_hash = reader.Bytes(kMaxConfigHashBytes);
  if (!magic || !reader.complete() || (role != 1 && role != 2)) return std::nullopt;
  hello.role = static_cast<Role>(role);
  return hello;
}

absl::Status CheckHello(const Hello& offered, const Hello& expected) {
  if (!SecretEquals(offered.secret, expected.secret)) {
    return absl::PermissionDeniedError("the secret is wrong");
  }
  const bool generation_known = offered.role == Role::kRank || offered.generation != 0;
  if (generation_known && offered.generation != expected.generation) {
    return absl::PermissionDeniedError(
        fmt::format("it belongs to generation {:016x} of the group, this is {:016x}",
                    offered.generation, expected.generation));
  }
  if (offered.count != expected.count || offered.index >= expected.count) {
    return absl::PermissionDeniedError(fmt::format("it calls itself {} {} of {}, this group has {}",
                                                   offered.role == Role::kNode ? "node" : "rank",
                                                   offered.index, offered.count, expected.count));
  }
  if (offered.config_hash != expected.config_hash) {
    return absl::PermissionDeniedError(
        fmt::format("its configuration differs: hash {} there, {} here", offered.config_hash,
                    expected.config_hash));
  }
  return absl::OkStatus();
}

std::string EncodeWelcome(const Welcome& welcome) {
  WireWriter writer;
  writer.U8(kWelcome);
  writer.U64(welcome.generation);
  writer.Bytes(welcome.group_secret);
  return writer.Take();
}

std::string EncodeRefusal(bool may_retry, std::string_view why) {
  WireWriter writer;
  writer.U8(kRefused);
  writer.U8(may_retry ? 1 : 0);
  writer.Bytes(why.substr(0, kMaxReasonBytes));
  return writer.Take();
}

absl::StatusOr<FrameChannel> SayHello(const Endpoint& to, const Hello& hello, size_t max_payload,
                                      TimePoint deadline, int wake_fd, Welcome* welcome) {
  ASSIGN_OR_RETURN(UniqueFd fd, Connect(to, deadline, wake_fd));
  FrameChannel channel(std::move(fd), std::max(max_payload, kMaxReasonBytes + 64), wake_fd);
  RETURN_IF_ERROR(channel.Send(EncodeHello(hello), deadline));
  ASSIGN_OR_RETURN(const std::string answer, channel.Receive(deadline));
  WireReader reader(answer);
  const uint8_t type = reader.U8();
  if (type == kRefused) {
    const bool may_retry = reader.U8() != 0;
    const std::string why =
        fmt::format("refused by {}: {}", to.ToString(), reader.Bytes(kMaxReasonBytes));
    return may_retry ? absl::ResourceExhaustedError(why) : absl::PermissionDeniedError(why);
  }
  Welcome told;
  told.generation = reader.U64();
  told.group_secret = reader.Bytes(kMaxSecretBytes);
  if (type != kWelcome || !reader.complete()) {
    return absl::UnavailableError(
        fmt::format("{} does not answer as a process of the group", to.ToString()));
  }
  if (welcome != nullptr) *welcome = std::move(told);
  return channel;
}

}  // namespace qserve::worker::group
