// What is said on a rendezvous connection after the hello (hello.h): a rank sets and gets keys, a
// node exchanges NodeMessages. Every frame begins with its FrameType. Private to this room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "worker/group/wire.h"

namespace qserve::worker::group {

inline constexpr size_t kMaxKeyBytes = 256;
inline constexpr size_t kMaxValueBytes = 1 << 20;
inline constexpr size_t kMaxFrameBytes = kMaxKeyBytes + kMaxValueBytes + 64;
inline constexpr size_t kMaxTextBytes = 4096;

enum class FrameType : uint8_t {
  kSet = 16,  // key, value -> kDone or kFull
  kGet,       // key, milliseconds -> kValue or kTimedOut
  kDone,
  kValue,
  kTimedOut,
  kFull,  // the store takes no more; why
  kNode,  // NodeMessage
};

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
