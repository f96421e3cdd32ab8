// What is said on a rendezvous connection. Private to this room. A connection begins with a Hello; the answer is kWelcome or
// kRefused. Then a rank sets and gets keys, a node exchanges NodeMessages. Every frame begins with its FrameType.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "worker/group/wire.h"

namespace qserve::worker::group {

inline constexpr uint32_t kRendezvousMagic = 0x31525351;  // "QSR1"
inline constexpr size_t kMaxHelloBytes = 1024;            // until the peer is known
inline constexpr size_t kMaxKeyBytes = 256;
inline constexpr size_t kMaxValueBytes = 1 << 20;
inline constexpr size_t kMaxFrameBytes = kMaxKeyBytes + kMaxValueBytes + 64;
inline constexpr size_t kMaxSecretBytes = 256;
inline constexpr size_t kMaxConfigHashBytes = 128;
inline constexpr size_t kMaxTextBytes = 4096;

enum class Role : uint8_t { kNode = 1, kRank = 2 };

enum class FrameType : uint8_t {
  kWelcome = 1,  // generation, group secret
  kRefused,      // may retry, why
  kSet,          // key, value -> kDone
  kGet,          // key, milliseconds -> kValue or kTimedOut
  kDone,
  kValue,
  kTimedOut,
  kFull,  // the store takes no more; why
  kNode,  // NodeMessage
};

struct Hello {
  Role role = Role::kRank;
  uint32_t index = 0;  // node or rank
  uint32_t count = 0;  // nodes or ranks
  uint64_t generation = 0;  // 0: not known yet (nodes)
  std::string secret;       // of the user (nodes) or of the group (ranks)
  std::string config_hash;
};

inline std::string Encode(const Hello& hello) {
  WireWriter writer;
  writer.U32(kRendezvousMagic);
  writer.U8(static_cast<uint8_t>(hello.role));
  writer.U32(hello.index);
  writer.U32(hello.count);
  writer.U64(hello.generation);
  writer.Bytes(hello.secret);
  writer.Bytes(hello.config_hash);
  return writer.Take();
}

inline std::optional<Hello> DecodeHello(std::string_view bytes) {
  WireReader reader(bytes);
  const bool magic = reader.U32() == kRendezvousMagic;
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

// Between node 0's supervisor and another's.
struct NodeMessage {
  enum class Type : uint8_t {
    kBeat = 1,     // both ways: I am running
    kStart,        // from node 0: every node has joined
    kStopRequest,  // to node 0: my user asks the group to stop
    kRanksDone,    // to node 0: all of my ranks ended with 0
    kLost,         // both ways: the group has failed; why
    kEnd,          // from node 0: the group has ended well
  };
  Type type = Type::kBeat;
  std::string text;
};

inline std::string Encode(const NodeMessage& message) {
  WireWriter writer;
  writer.U8(static_cast<uint8_t>(FrameType::kNode));
  writer.U8(static_cast<uint8_t>(message.type));
  writer.Bytes(std::string_view(message.text).substr(0, kMaxTextBytes));
  return writer.Take();
}

// `bytes` is a whole frame.
inline std::optional<NodeMessage> DecodeNodeMessage(std::string_view bytes) {
  WireReader reader(bytes);
  const bool is_node = reader.U8() == static_cast<uint8_t>(FrameType::kNode);
  const uint8_t type = reader.U8();
  NodeMessage message;
  message.text = reader.Bytes(kMaxTextBytes);
  const bool known = type >= static_cast<uint8_t>(NodeMessage::Type::kBeat) &&
                     type <= static_cast<uint8_t>(NodeMessage::Type::kEnd);
  if (!is_node || !known || !reader.complete()) return std::nullopt;
  message.type = static_cast<NodeMessage::Type>(type);
  return message;
}

}  // namespace qserve::worker::group
