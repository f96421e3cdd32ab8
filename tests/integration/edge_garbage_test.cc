// Connections that do not speak gRPC, speak it badly or do not listen, at the ports of a replica
// and of a router, all at once, while well-meaning clients go on being served. Afterwards every
// connection is closed and nothing is held.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/integration/router_fixture.h"

namespace qserve::integration {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// A TCP connection that says what a test wants.
class RawConnection {
 public:
  explicit RawConnection(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval to_talk = {.tv_sec = 2, .tv_usec = 0};
    const timeval to_listen = {.tv_sec = kPatience.count(), .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &to_talk, sizeof(to_talk));
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &to_listen, sizeof(to_listen));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~RawConnection() { close(fd_); }
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  // As much as the other side takes.
  void Say(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // True once the other side has closed, whatever it said before; false if it stays for a minute.
  bool IsClosed() {
    char buffer[4096];
    ssize_t got = 0;
    while ((got = recv(fd_, buffer, sizeof(buffer), 0)) > 0) {
    }
    return got == 0 || errno == ECONNRESET;
  }

 private:
  int fd_;
};

// An HTTP/2 frame; `length` in its header may differ from what follows.
std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload,
                  size_t length) {
  std::string frame;
  for (const int shift : {16, 8, 0}) frame += static_cast<char>(length >> shift);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  for (const int shift : {24, 16, 8, 0}) frame += static_cast<char>(stream >> shift);
  return frame + payload;
}
std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  return Frame(type, flags, stream, payload, payload.size());
}

std::string RandomBytes(std::mt19937& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// What is not HTTP/2 at all.
std::vector<std::string> OtherProtocols(std::mt19937& random) {
  return {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
          "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n{",
          "GET /" + std::string(100'000, 'a'),
          "\x16\x03\x01\x02\x01\x01\xfc\x03\x03" + RandomBytes(random, 600),
          RandomBytes(random, 1),
          RandomBytes(random, 20'000),
          std::string(100'000, '\0')};
}

// What begins as HTTP/2 does and goes wrong later.
std::vector<std::string> BrokenHttp2(std::mt19937& random) {
  const std::string hello = std::string(kPreface) + Frame(4, 0, 0, "");
  std::string headers_without_end = hello + Frame(1, 0, 1, std::string(8000, '\x82'));
  for (int i = 0; i < 40; ++i) headers_without_end += Frame(9, 0, 1, std::string(8000, '\x82'));
  std::string many_resets = hello;
  for (uint32_t i = 0; i < 2000; ++i) {
    many_resets += Frame(1, 4, 2 * i + 1, "\x82\x84\x86");
    many_resets += Frame(3, 0, 2 * i + 1, std::string(4, '\x08'));
  }
  std::string pings = hello;
  for (int i = 0; i < 5000; ++i) pings += Frame(6, 0, 0, "12345678");
  std::string settings = hello;
  for (int i = 0; i < 5000; ++i) settings += Frame(4, 0, 0, std::string("\0\x03\0\0\0\x01", 6));
  return {hello + RandomBytes(random, 5000),
          hello + Frame(0, 0, 0, "data of no stream"),
          hello + Frame(0, 0, 1, std::string(100, 'x'), (1 << 24) - 1),
          hello + Frame(8, 0, 0, std::string(4, '\0')),
          hello + Frame(4, 0, 0, "12345"),
          hello + Frame(1, 4, 1, RandomBytes(random, 300)),
          std::string(kPreface) + RandomBytes(random, 9),
          headers_without_end,
          many_resets,
          pings,
          settings};
}

// What is said in part only.
std::vector<std::string> Silences() {
  return {"", "P", std::string(kPreface.substr(0, 12)), std::string(kPreface),
          std::string(kPreface) + Frame(4, 0, 0, "") + "\0\0"};
}

int64_t OpenFiles() {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    count += entry.path().empty() ? 0 : 1;
  }
  return count;
}

class EdgeGarbage : public RouterTest {
 protected:
  void Begin() {
    Start({{}, {}});
    ports_ = {router_->port(), replicas_[0]->port()};
    undisturbed_ = Undisturbed(Spec(40));
    ExpectServed();
  }
  // A stream over each port, whole and as ever.
  void ExpectServed() {
    for (const int port : ports_) {
      const Outcome outcome = Stream(Connect("127.0.0.1:" + std::to_string(port)), Spec(40));
      ExpectWhole(outcome);
      ExpectSame(outcome, undisturbed_);
    }
  }
  void ExpectNothingHeld() {
    for (const auto& replica : replicas_) EXPECT_TRUE(replica->ComesToRest());
    EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
  }

  std::vector<int> ports_;
  Outcome undisturbed_;
};

TEST_F(EdgeGarbage, OtherProtocolsAndBrokenFramesHarmNobody) {
  Begin();
  const int64_t files = OpenFiles();
  std::vector<std::thread> talkers;
  for (uint32_t talker = 0; talker < 4; ++talker) {
    talkers.emplace_back([this, talker] {
      std::mt19937 random(talker);
      for (int round = 0; round < 3; ++round) {
        std::vector<std::string> all = OtherProtocols(random);
        for (std::string& bytes : BrokenHttp2(random)) all.push_back(std::move(bytes));
        for (const std::string& bytes : all) {
          RawConnection connection(ports_[talker % 2]);
          connection.Say(bytes);
        }
      }
    });
  }
  for (int i = 0; i < 20; ++i) ExpectServed();
  for (std::thread& talker : talkers) talker.join();
  ExpectServed();
  ExpectNothingHeld();
  // Every connection that was made has been given up; a few of gRPC's own may be new.
  EXPECT_TRUE(Eventually([&] { return OpenFiles() < files + 32; })) << OpenFiles() - files;
}

TEST_F(EdgeGarbage, WhoSpeaksAnotherProtocolIsHungUpOn) {
  Begin();
  for (const int port : ports_) {
    RawConnection connection(port);
    connection.Say("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_TRUE(connection.IsClosed());
  }
}

TEST_F(EdgeGarbage, HalfOpenConnectionsHoldUpNobody) {
  Begin();
  std::vector<std::unique_ptr<RawConnection>> silent;
  for (int i = 0; i < 20; ++i) {
    for (const int port : ports_) {
      for (const std::string& bytes : Silences()) {
        silent.push_back(std::make_unique<RawConnection>(port));
        silent.back()->Say(bytes);
      }
    }
  }
  ExpectServed();
  silent.clear();
  ExpectServed();
  ExpectNothingHeld();
}

TEST_F(EdgeGarbage, AHundredSlowReadersHoldUpNobody) {
  Begin();
  v1::GenerationSpec spec = Spec(600);
  spec.mutable_output()->set_logprobs(20);
  std::vector<std::unique_ptr<LiveStream>> slow;
  for (int32_t i = 0; i < 100; ++i) {
    const int port = ports_[static_cast<size_t>(i % 2)];
    slow.push_back(
        std::make_unique<LiveStream>(Connect("127.0.0.1:" + std::to_string(port)), spec));
  }
  ExpectServed();
  // A few read on in the end, the others hang up.
  for (size_t i = 0; i < 4; ++i) ExpectWhole(slow[i]->End());
  slow.clear();
  ExpectServed();
  ExpectNothingHeld();
}

TEST_F(EdgeGarbage, HugeHeadersAreRefusedByBoth) {
  Begin();
  const std::string method = std::string("/") + kInferenceName + "/ListModels";
  for (const int port : ports_) {
    // gRPC may close the connection that brings them, and no other.
    const std::string address = "127.0.0.1:" + std::to_string(port);
    const auto bystander = Connect(address);
    EXPECT_TRUE(CallRaw(bystander, method, "").ok());
    for (const size_t size : {size_t{20} << 10, size_t{1} << 20}) {
      const grpc::Status refused =
          CallRaw(Connect(address), method, "", nullptr, {{"x-large", std::string(size, 'm')}});
      EXPECT_FALSE(refused.ok()) << size;
      const grpc::Status served = CallRaw(bystander, method, "");
      EXPECT_TRUE(served.ok()) << rpc::Describe(served);
    }
  }
}

}  // namespace
}  // namespace qserve::integration
