// The rendezvous: a small key-value store over TCP where the processes of a group find each other,
// and the place where supervisors of other nodes join and stay connected. Owned by node 0's
// supervisor, run by its event loop, on its thread.
//
// Trust: a connection says nothing that matters before its Hello has been checked: magic, secret
// (in constant time), generation, config hash, place in the group. Anything malformed closes that
// connection and nothing else. Everything is bounded: connections, frames, keys, values, the whole
// store, unsent replies.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/group/event_loop.h"
#include "worker/group/frame.h"
#include "worker/group/hello.h"
#include "worker/group/rendezvous_protocol.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {

struct RendezvousOptions {
  Endpoint listen;
  int nodes = 1;
  int ranks = 1;
  uint64_t generation = 0;   // of this group; a rank of another is refused
  std::string user_secret;   // what a node must know
  std::string group_secret;  // what a rank must know; nodes are told it
  std::string config_hash;   // must be equal everywhere
  Duration node_timeout = std::chrono::seconds(5);
  Duration hello_timeout = std::chrono::seconds(5);
};

class RendezvousServer {
 public:
  // A message of a joined node; kLost also when its connection ended or fell silent (text says
  // why).
  using NodeHandler = std::function<void(int node, const NodeMessage& message)>;

  // `loop` must outlive the server. `on_node` may be empty for a group of one node.
  static absl::StatusOr<std::unique_ptr<RendezvousServer>> Create(EventLoop* loop,
                                                                  RendezvousOptions options,
                                                                  NodeHandler on_node);
  ~RendezvousServer();

  const Endpoint& endpoint() const { return endpoint_; }
  // Every node but this one has joined.
  bool complete() const;
  // This end of a joined node's connection: the interface by which nodes reach this one. Needs one.
  Endpoint node_facing_endpoint() const { return node_facing_; }
  void SendToNodes(const NodeMessage& message);
  // Once per turn of the loop, with the time that turn took: silence is counted only while this
  // process itself was running.
  void Tick(Duration elapsed);

 private:
  struct Connection {
    UniqueFd fd;
    std::string peer;
    FrameReader reader{kMaxHelloBytes};
    std::string out;
    bool joined = false;
    bool refused = false;  // stays open until the peer has read why
    bool broken = false;   // to be closed at the next tick
    Role role = Role::kRank;
    int index = -1;
    Duration silence{0};
    bool waiting = false;  // for wait_key, until wait_deadline
    std::string wait_key;
    TimePoint wait_deadline{};
  };
  RendezvousServer(EventLoop* loop, RendezvousOptions options, NodeHandler on_node)
      : loop_(loop), options_(std::move(options)), on_node_(std::move(on_node)) {}

  void AcceptAll();
  void OnEvent(int fd, short revents);
  // False: the connection is to be closed.
  bool HandleFrame(Connection& connection, const std::string& frame);
  bool HandleHello(Connection& connection, const std::string& frame);
  bool HandleSet(Connection& connection, WireReader& reader);
  bool HandleGet(Connection& connection, WireReader& reader);
  bool HandleNode(Connection& connection, const std::string& frame);
  bool Refuse(Connection& connection, bool may_retry, const std::string& why);
  bool Reply(Connection& connection, FrameType type, const std::string* text = nullptr);
  bool Send(Connection& connection, const std::string& payload);
  bool Flush(Connection& connection);
  void Close(int fd, const std::string& why);
  void AnswerWaiting(const std::string& key);
  bool NodeJoined(int node) const;

  EventLoop* loop_;
  RendezvousOptions options_;
  NodeHandler on_node_;
  UniqueFd listener_;
  Endpoint endpoint_;
  Endpoint node_facing_;
  std::map<int, Connection> connections_;  // by descriptor
  std::map<std::string, std::string> store_;
  size_t store_bytes_ = 0;
};

}  // namespace qserve::worker::group
