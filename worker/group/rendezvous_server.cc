#include "worker/group/rendezvous_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/group/secret.h"

namespace qserve::worker::group {
namespace {

constexpr size_t kMaxConnections = 1024;
constexpr size_t kMaxKeys = 65536;
constexpr size_t kMaxStoreBytes = 64 << 20;
constexpr size_t kMaxUnsentBytes = 4 << 20;
constexpr uint64_t kMaxWaitMs = 3'600'000;

}  // namespace

absl::StatusOr<std::unique_ptr<RendezvousServer>> RendezvousServer::Create(
    EventLoop* loop, RendezvousOptions options, NodeHandler on_node) {
  // Not make_unique: the constructor is private.
  std::unique_ptr<RendezvousServer> server(
      new RendezvousServer(loop, std::move(options), std::move(on_node)));
  ASSIGN_OR_RETURN(server->listener_, Listen(server->options_.listen));
  ASSIGN_OR_RETURN(server->endpoint_, LocalEndpoint(server->listener_.get()));
  loop->Watch(server->listener_.get(), POLLIN, [raw = server.get()](short) { raw->AcceptAll(); });
  return server;
}

RendezvousServer::~RendezvousServer() {
  if (listener_.valid()) loop_->Forget(listener_.get());
  for (const auto& [fd, connection] : connections_) loop_->Forget(fd);
}

bool RendezvousServer::complete() const {
  for (int node = 1; node < options_.nodes; ++node) {
    if (!NodeJoined(node)) return false;
  }
  return true;
}

bool RendezvousServer::NodeJoined(int node) const {
  for (const auto& [fd, connection] : connections_) {
    if (connection.joined && connection.role == Role::kNode && connection.index == node) {
      return true;
    }
  }
  return false;
}

void RendezvousServer::SendToNodes(const NodeMessage& message) {
  // May be called from a node's handler, so nothing is closed here.
  for (auto& [fd, connection] : connections_) {
    if (!connection.joined || connection.role != Role::kNode) continue;
    if (!Send(connection, Encode(message))) connection.broken = true;
  }
}

void RendezvousServer::Tick(Duration elapsed) {
  const TimePoint now = std::chrono::steady_clock::now();
  std::vector<std::pair<int, std::string>> failed;
  for (auto& [fd, connection] : connections_) {
    connection.silence += elapsed;
    if (connection.broken) {
      failed.emplace_back(fd, "its connection failed");
    } else if (!connection.joined && connection.silence > options_.hello_timeout) {
      failed.emplace_back(fd, "it did not introduce itself in time");
    } else if (connection.joined && connection.role == Role::kNode &&
               connection.silence > options_.node_timeout) {
      failed.emplace_back(
          fd, fmt::format("it was silent for {:.1f} s", ToSeconds(options_.node_timeout)));
    } else if (connection.waiting && now >= connection.wait_deadline) {
      connection.waiting = false;
      if (!Reply(connection, FrameType::kTimedOut)) failed.emplace_back(fd, "send failed");
    }
  }
  for (const auto& [fd, why] : failed) Close(fd, why);
}

void RendezvousServer::AcceptAll() {
  while (true) {
    absl::StatusOr<UniqueFd> accepted = Accept(listener_.get());
    if (!accepted.ok()) {
      if (!absl::IsNotFound(accepted.status())) {
        LOG_WARN("rendezvous: {}", std::string(accepted.status().message()));
      }
      return;
    }
    if (connections_.size() >= kMaxConnections) {
      LOG_WARN("rendezvous: a connection was closed, {} are open already", kMaxConnections);
      continue;
    }
    const int fd = accepted->get();
    Connection& connection = connections_[fd];
    const absl::StatusOr<Endpoint> peer = PeerEndpoint(fd);
    connection.peer = peer.ok() ? peer->ToString() : "unknown";
    connection.fd = *std::move(accepted);
    loop_->Watch(fd, POLLIN, [this, fd](short revents) { OnEvent(fd, revents); });
  }
}

void RendezvousServer::OnEvent(int fd, short revents) {
  Connection& connection = connections_.at(fd);
  if ((revents & POLLOUT) != 0 && !Flush(connection)) return Close(fd, "send failed");
  if ((revents & (POLLIN | POLLHUP | POLLERR)) == 0) return;
  if (connection.refused) return Close(fd, "it was refused");
  // What arrived before the end of the stream counts, so the end is acted upon last.
  const absl::Status read = connection.reader.ReadFrom(fd);
  while (!connection.refused) {
    absl::StatusOr<std::optional<std::string>> frame = connection.reader.Next();
    if (!frame.ok()) return Close(fd, std::string(frame.status().message()));
    if (!frame->has_value()) break;
    if (!HandleFrame(connection, **frame)) return Close(fd, "it sent something malformed");
  }
  if (!read.ok()) return Close(fd, std::string(read.message()));
}

bool RendezvousServer::HandleFrame(Connection& connection, const std::string& frame) {
  if (!connection.joined) return HandleHello(connection, frame);
  connection.silence = Duration(0);
  if (connection.role == Role::kNode) return HandleNode(connection, frame);
  if (connection.waiting) return false;  // one request at a time
  WireReader reader(frame);
  switch (static_cast<FrameType>(reader.U8())) {
    case FrameType::kSet:
      return HandleSet(connection, reader);
    case FrameType::kGet:
      return HandleGet(connection, reader);
    default:
      return false;
  }
}

bool RendezvousServer::HandleHello(Connection& connection, const std::string& frame) {
  const std::optional<Hello> hello = DecodeHello(frame);
  if (!hello.has_value()) return false;
  const bool is_node = hello->role == Role::kNode;
  Hello expected;
  expected.count = static_cast<uint32_t>(is_node ? options_.nodes : options_.ranks);
  expected.generation = options_.generation;
  expected.secret = is_node ? options_.user_secret : options_.group_secret;
  expected.config_hash = options_.config_hash;
  const absl::Status checked = CheckHello(*hello, expected);
  if (!checked.ok()) return Refuse(connection, false, std::string(checked.message()));
  const int index = static_cast<int>(hello->index);
  if (is_node && (index == 0 || NodeJoined(index))) {
    return Refuse(connection, true, fmt::format("node {} is in the group already", index));
  }
  if (is_node) {
    const absl::StatusOr<Endpoint> here = LocalEndpoint(connection.fd.get());
    if (here.ok()) node_facing_ = *here;
    LOG_INFO("rendezvous: node {} joined from {}", index, connection.peer);
  }
  connection.joined = true;
  connection.role = hello->role;
  connection.index = index;
  connection.silence = Duration(0);
  connection.reader.set_max_payload(kMaxFrameBytes);
  return Send(connection, EncodeWelcome({options_.generation, options_.group_secret}));
}

bool RendezvousServer::Refuse(Connection& connection, bool may_retry, const std::string& why) {
  LOG_WARN("rendezvous: {} was refused: {}", connection.peer, why);
  // The peer must be able to read the reason: closed when it closes, says more, or its time is
  // over.
  connection.refused = true;
  return Send(connection, EncodeRefusal(may_retry, why));
}

bool RendezvousServer::HandleSet(Connection& connection, WireReader& reader) {
  std::string key = reader.Bytes(kMaxKeyBytes);
  std::string value = reader.Bytes(kMaxValueBytes);
  if (!reader.complete() || key.empty()) return false;
  const auto found = store_.find(key);
  const size_t replaced = found == store_.end() ? 0 : key.size() + found->second.size();
  const size_t added = key.size() + value.size();
  if ((found == store_.end() && store_.size() >= kMaxKeys) ||
      store_bytes_ - replaced + added > kMaxStoreBytes) {
    const std::string why =
        fmt::format("the rendezvous store is full: {} keys, {} bytes", store_.size(), store_bytes_);
    return Reply(connection, FrameType::kFull, &why);
  }
  store_bytes_ = store_bytes_ - replaced + added;
  store_[key] = std::move(value);
  if (!Reply(connection, FrameType::kDone)) return false;
  AnswerWaiting(key);
  return true;
}

bool RendezvousServer::HandleGet(Connection& connection, WireReader& reader) {
  std::string key = reader.Bytes(kMaxKeyBytes);
  const uint64_t wait_ms = std::min(reader.U64(), kMaxWaitMs);
  if (!reader.complete() || key.empty()) return false;
  const auto found = store_.find(key);
  if (found != store_.end()) return Reply(connection, FrameType::kValue, &found->second);
  connection.waiting = true;
  connection.wait_key = std::move(key);
  connection.wait_deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
  return true;
}

void RendezvousServer::AnswerWaiting(const std::string& key) {
  // A peer that cannot be answered is closed when its error is polled.
  for (auto& [fd, connection] : connections_) {
    if (!connection.waiting || connection.wait_key != key) continue;
    connection.waiting = false;
    [[maybe_unused]] const bool sent = Reply(connection, FrameType::kValue, &store_.at(key));
  }
}

bool RendezvousServer::HandleNode(Connection& connection, const std::string& frame) {
  const std::optional<NodeMessage> message = DecodeNodeMessage(frame);
  if (!message.has_value()) return false;
  if (message->type != NodeMessage::Type::kBeat && on_node_) on_node_(connection.index, *message);
  return true;
}

bool RendezvousServer::Reply(Connection& connection, FrameType type, const std::string* text) {
  WireWriter writer;
  writer.U8(static_cast<uint8_t>(type));
  if (text != nullptr) writer.Bytes(*text);
  return Send(connection, writer.Take());
}

bool RendezvousServer::Send(Connection& connection, const std::string& payload) {
  if (connection.out.size() + payload.size() > kMaxUnsentBytes) return false;
  connection.out += Frame(payload);
  return Flush(connection);
}

bool RendezvousServer::Flush(Connection& connection) {
  std::string& out = connection.out;
  while (!out.empty()) {
    const ssize_t sent = send(connection.fd.get(), out.data(), out.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (sent < 0) return false;
    out.erase(0, static_cast<size_t>(sent));
  }
  loop_->SetEvents(connection.fd.get(), out.empty() ? POLLIN : short{POLLIN | POLLOUT});
  return true;
}

void RendezvousServer::Close(int fd, const std::string& why) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) return;
  loop_->Forget(fd);
  const Connection connection = std::move(found->second);
  connections_.erase(found);
  if (connection.joined && connection.role == Role::kNode) {
    if (on_node_) on_node_(connection.index, {NodeMessage::Type::kLost, why});
  } else if (!connection.joined && !connection.refused) {
    LOG_WARN("rendezvous: closed the connection from {}: {}", connection.peer, why);
  }
}

}  // namespace qserve::worker::group
