// The rendezvous over loopback: keys between ranks, who is let in, and what strangers and liars can
// do (nothing).
#include "worker/group/rendezvous_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "worker/group/rendezvous_client.h"

namespace qserve::worker::group {
namespace {

using ::testing::HasSubstr;

TimePoint In(int seconds) {
  return std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
}

RendezvousOptions Options() {
  RendezvousOptions options;
  options.listen = {"127.0.0.1", 0};
  options.nodes = 2;
  options.ranks = 4;
  options.generation = 77;
  options.user_secret = "user secret";
  options.group_secret = "group secret";
  options.config_hash = "c0ffee";
  return options;
}

Hello RankHello() { return {Role::kRank, 1, 4, 77, "group secret", "c0ffee"}; }
Hello NodeHello() { return {Role::kNode, 1, 2, 0, "user secret", "c0ffee"}; }

// A server with a thread that runs its loop.
class RendezvousTest : public ::testing::Test {
 protected:
  void Start(const RendezvousOptions& options) {
    auto server = RendezvousServer::Create(&loop_, options, [this](int node, const NodeMessage& m) {
      if (node == 1 && m.type == NodeMessage::Type::kLost) node_lost_ = true;
      if (node == 1 && m.type == NodeMessage::Type::kStopRequest) {
        server_->SendToNodes({NodeMessage::Type::kStart, "go"});
      }
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    thread_ = std::thread([this] {
      while (!stop_) {
        loop_.RunOnce(std::chrono::milliseconds(10));
        server_->Tick(std::chrono::milliseconds(10));
      }
    });
  }
  void SetUp() override { Start(Options()); }
  void TearDown() override {
    stop_ = true;
    thread_.join();
  }
  absl::StatusOr<std::unique_ptr<RendezvousClient>> Client(const Hello& hello = RankHello()) {
    return RendezvousClient::Create(server_->endpoint(), hello, In(30));
  }
  // A connection that has said nothing yet.
  FrameChannel Stranger() {
    auto fd = Connect(server_->endpoint(), In(30), -1);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return FrameChannel(*std::move(fd), kMaxFrameBytes, -1);
  }
  absl::StatusOr<FrameChannel> JoinAsNode(Welcome* welcome) {
    return SayHello(server_->endpoint(), NodeHello(), kMaxFrameBytes, In(30), -1, welcome);
  }
  void ExpectServes() {
    auto client = Client();
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE((*client)->Set("alive", "yes").ok());
    EXPECT_EQ((*client)->Get("alive", Duration(0)).value_or("no"), "yes");
  }

  EventLoop loop_;
  std::unique_ptr<RendezvousServer> server_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> node_lost_{false};
  std::thread thread_;
};

TEST_F(RendezvousTest, AValueReachesAnotherRank) {
  auto a = Client();
  auto b = Client();
  ASSERT_TRUE(a.ok() && b.ok());
  const std::string value(100'000, '\0');
  ASSERT_TRUE((*a)->Set("key", value).ok());
  EXPECT_EQ((*b)->Get("key", Duration(0)).value_or(""), value);
  ASSERT_TRUE((*b)->Set("key", "").ok());
  EXPECT_EQ((*a)->Get("key", Duration(0)).value_or("none"), "");
}

TEST_F(RendezvousTest, GetWaitsUntilTheKeyIsSet) {
  auto a = Client();
  auto b = Client();
  ASSERT_TRUE(a.ok() && b.ok());
  std::thread setter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE((*a)->Set("late", "value").ok());
  });
  EXPECT_EQ((*b)->Get("late", std::chrono::seconds(60)).value_or("none"), "value");
  setter.join();
}

TEST_F(RendezvousTest, GetTimesOutAndTheConnectionGoesOn) {
  auto client = Client();
  ASSERT_TRUE(client.ok());
  const auto missing = (*client)->Get("missing", std::chrono::milliseconds(30));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("'missing'"));
  EXPECT_TRUE((*client)->Set("missing", "found").ok());
  EXPECT_EQ((*client)->Get("missing", Duration(0)).value_or(""), "found");
}

TEST_F(RendezvousTest, AbortEndsAWaitingGet) {
  auto client = Client();
  ASSERT_TRUE(client.ok());
  std::thread aborter([&] { (*client)->Abort(); });
  EXPECT_TRUE(absl::IsCancelled((*client)->Get("never", std::chrono::hours(1)).status()));
  aborter.join();
}

struct Refused {
  const char* name;
  Hello hello;
  const char* reason;
};
class RefusedTest : public RendezvousTest, public ::testing::WithParamInterface<Refused> {};

TEST_P(RefusedTest, SaysWhyAndServesOthers) {
  const auto client = Client(GetParam().hello);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kPermissionDenied) << client.status();
  EXPECT_THAT(std::string(client.status().message()), HasSubstr(GetParam().reason));
  ExpectServes();
}

INSTANTIATE_TEST_SUITE_P(
    Hellos, RefusedTest,
    ::testing::Values(
        Refused{"WrongSecret", {Role::kRank, 1, 4, 77, "group secreT", "c0ffee"}, "secret"},
        Refused{"NoSecret", {Role::kRank, 1, 4, 77, "", "c0ffee"}, "secret"},
        Refused{"LongerSecret",
                {Role::kRank, 1, 4, 77, "group secretgroup secret", "c0ffee"},
                "secret"},
        Refused{
            "UserSecretIsNotARanks", {Role::kRank, 1, 4, 77, "user secret", "c0ffee"}, "secret"},
        Refused{"OldGeneration",
                {Role::kRank, 1, 4, 76, "group secret", "c0ffee"},
                "generation 000000000000004c of the group, this is 000000000000004d"},
        Refused{"NoGeneration", {Role::kRank, 1, 4, 0, "group secret", "c0ffee"}, "generation"},
        Refused{"OtherConfig",
                {Role::kRank, 1, 4, 77, "group secret", "decaf"},
                "hash decaf there, c0ffee here"},
        Refused{"RankTooHigh", {Role::kRank, 4, 4, 77, "group secret", "c0ffee"}, "rank 4 of 4"},
        Refused{"OtherSize", {Role::kRank, 1, 8, 77, "group secret", "c0ffee"}, "this group has 4"},
        Refused{"NodeWithRanksSecret", {Role::kNode, 1, 2, 0, "group secret", "c0ffee"}, "secret"},
        Refused{"NodeOfOtherConfig",
                {Role::kNode, 1, 2, 0, "user secret", "decaf"},
                "hash decaf there, c0ffee here"}),
    [](const auto& param) { return param.param.name; });

TEST_F(RendezvousTest, GarbageClosesItsOwnConnectionOnly) {
  for (const std::string& garbage :
       {std::string("GET / HTTP/1.1\r\n\r\n"), Frame("not a hello"), Frame(""),
        std::string(8192, '\xff'), Frame(EncodeHello(RankHello()) + "x")}) {
    FrameChannel stranger = Stranger();
    ASSERT_TRUE(SendAll(stranger.fd(), garbage, In(30), -1).ok());
    EXPECT_TRUE(absl::IsUnavailable(stranger.Receive(In(30)).status()));
    ExpectServes();
  }
}

TEST_F(RendezvousTest, AnOversizedFrameIsRefusedBeforeItArrives) {
  FrameChannel stranger = Stranger();
  ASSERT_TRUE(SendAll(stranger.fd(), std::string("\x01\x04\x00\x00", 4), In(30), -1).ok());
  EXPECT_TRUE(absl::IsUnavailable(stranger.Receive(In(30)).status()));

  FrameChannel joined = Stranger();
  ASSERT_TRUE(joined.Send(EncodeHello(RankHello()), In(30)).ok());
  ASSERT_TRUE(joined.Receive(In(30)).ok());
  ASSERT_TRUE(SendAll(joined.fd(), std::string("\xff\xff\xff\x7f", 4), In(30), -1).ok());
  EXPECT_TRUE(absl::IsUnavailable(joined.Receive(In(30)).status()));
  ExpectServes();
}

TEST_F(RendezvousTest, KeysAndValuesAreBounded) {
  auto client = Client();
  ASSERT_TRUE(client.ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*client)->Set(std::string(257, 'k'), "v")));
  EXPECT_TRUE(absl::IsInvalidArgument((*client)->Set("", "v")));
  EXPECT_TRUE(absl::IsInvalidArgument((*client)->Set("k", std::string(kMaxValueBytes + 1, 'v'))));
  const std::string large(kMaxValueBytes, 'v');
  absl::Status status;
  for (int i = 0; i < 65 && status.ok(); ++i) status = (*client)->Set(std::to_string(i), large);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // Replacing needs no more room, and the store still answers.
  EXPECT_TRUE((*client)->Set("0", large).ok());
  EXPECT_EQ((*client)->Get("1", Duration(0)).value_or(""), large);
}

TEST_F(RendezvousTest, ASilentStrangerIsClosed) {
  FrameChannel stranger = Stranger();
  EXPECT_TRUE(absl::IsUnavailable(stranger.Receive(In(60)).status()));
}

TEST_F(RendezvousTest, ANodeJoinsOnceTalksAndIsMissed) {
  Welcome welcome;
  auto node = JoinAsNode(&welcome);
  ASSERT_TRUE(node.ok()) << node.status();
  EXPECT_EQ(welcome.generation, 77u);
  EXPECT_EQ(welcome.group_secret, "group secret");
  const auto twin = JoinAsNode(nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(twin.status())) << twin.status();

  ASSERT_TRUE(node->Send(Encode(NodeMessage{NodeMessage::Type::kStopRequest, ""}), In(30)).ok());
  const auto answer = node->Receive(In(30));
  ASSERT_TRUE(answer.ok());
  const auto message = DecodeNodeMessage(*answer);
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(message->type, NodeMessage::Type::kStart);
  EXPECT_EQ(message->text, "go");

  EXPECT_FALSE(node_lost_);
  shutdown(node->fd(), SHUT_RDWR);
  for (int i = 0; i < 3000 && !node_lost_; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(node_lost_);
}

TEST_F(RendezvousTest, ASilentNodeIsLost) {
  auto node = JoinAsNode(nullptr);
  ASSERT_TRUE(node.ok()) << node.status();
  EXPECT_TRUE(absl::IsUnavailable(node->Receive(In(60)).status()));
  EXPECT_TRUE(node_lost_);
}

TEST(Endpoint, ParsesHostAndPort) {
  EXPECT_EQ(ParseEndpoint("node-0.qserve:7000")->ToString(), "node-0.qserve:7000");
  EXPECT_EQ(ParseEndpoint("[::1]:0")->ToString(), "[::1]:0");
  for (const char* wrong : {"", ":", "host", "host:", ":1", "host:65536", "host:-1", "host:1x",
                            "::1:5", "[]:5", "[x:5"}) {
    EXPECT_FALSE(ParseEndpoint(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace qserve::worker::group
