// The commands against a scripted server: what goes to which stream, and the exit code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "client/commands.h"
#include "common/rpc/errors.h"
#include "nlohmann/json.hpp"
#include "tests/unit/client/fake_server.h"

namespace qserve::client {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

using Command = int (*)(int, const char* const*, const Console&, Interrupt&);

struct Ran {
  int code = -1;
  std::string out, err;
  int error_lines() const { return static_cast<int>(std::count(err.begin(), err.end(), '\n')); }
};

Ran Execute(Command command, std::vector<std::string> arguments, const std::string& input = "",
            bool terminal = false, Interrupt* interrupt = nullptr) {
  std::istringstream in(input);
  std::ostringstream out, err;
  Interrupt own;
  std::vector<const char*> argv = {"command"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  const Console console = {.in = in, .out = out, .err = err, .out_is_terminal = terminal};
  Ran ran;
  ran.code = command(static_cast<int>(argv.size()), argv.data(), console,
                     interrupt != nullptr ? *interrupt : own);
  ran.out = out.str();
  ran.err = err.str();
  return ran;
}

TEST(Generate, StreamsTextAndSumsUp) {
  const FakeServer server;
  const Ran ran = Execute(Generate, {"--address", server.address(), "--prompt", "Say",
                                     "--max-tokens", "3", "--temperature", "0", "--ignore-eos"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "Hello, world\n");
  EXPECT_THAT(ran.err, HasSubstr("LENGTH, 3 tokens in "));
  EXPECT_THAT(ran.err, HasSubstr("first token after "));
  const v1::GenerationSpec spec = server.last_spec();
  EXPECT_EQ(spec.model(), "fake");
  EXPECT_EQ(spec.prompt().text(), "Say");
  EXPECT_EQ(spec.stopping().max_tokens(), 3);
  EXPECT_TRUE(spec.stopping().ignore_eos());
}

TEST(Generate, GivesOneJsonObject) {
  const FakeServer server;
  const Ran ran =
      Execute(Generate, {"--address", server.address(), "--token-ids", "4,5", "--json"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.err, IsEmpty());
  const auto json = nlohmann::json::parse(ran.out);
  EXPECT_EQ(json["text"], "Hello, world");
  EXPECT_EQ(json["token_ids"], (std::vector<int>{10, 11, 12}));
  EXPECT_EQ(json["finish_reason"], "LENGTH");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(json["usage"]["output_tokens"], 3);
  EXPECT_EQ(json["seed"], 18446744073709551615ull);  // all 64 bits
  EXPECT_FALSE(json.contains("candidates"));
  EXPECT_THAT(server.last_spec().prompt().token_ids().ids(), testing::ElementsAre(4, 5));
}

TEST(Generate, GivesEveryCandidate) {
  const FakeServer server;
  const Ran json_run =
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--n", "2", "--json"});
  EXPECT_EQ(json_run.code, 0) << json_run.err;
  const auto json = nlohmann::json::parse(json_run.out);
  ASSERT_EQ(json["candidates"].size(), 2u);
  EXPECT_EQ(json["candidates"][1]["index"], 1);
  EXPECT_EQ(json["candidates"][1]["text"], "Hello, world");
  const Ran text_run =
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--n", "2"});
  EXPECT_EQ(text_run.out, "[0] Hello, world\n[1] Hello, world\n");
}

TEST(Generate, ReadsThePromptFromStandardInput) {
  const FakeServer server;
  EXPECT_EQ(
      Execute(Generate, {"--address", server.address(), "--prompt", "-"}, "from a pipe\n").code, 0);
  EXPECT_EQ(server.last_spec().prompt().text(), "from a pipe\n");
}

TEST(Generate, EscapesControlCharactersOnATerminalOnly) {
  FakeServer server;
  server.texts = {"a\x1b[2J", "b\n"};
  const std::vector<std::string> arguments = {"--address", server.address(), "--prompt", "x"};
  EXPECT_EQ(Execute(Generate, arguments, "", true).out, "a\\x1b[2Jb\n");
  EXPECT_EQ(Execute(Generate, arguments, "", false).out, "a\x1b[2Jb\n");
}

TEST(Generate, ErrorIsOneLineWithItsReason) {
  FakeServer server;
  server.texts = {};
  server.stream_status = rpc::MakeInvalidArgument(
      {{"spec.sampling.top_p", "must be in (0, 1], got 2"}, {"spec.output.n", "is\nodd"}}, "");
  const Ran ran = Execute(Generate, {"--address", server.address(), "--prompt", "x", "--json"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.out, IsEmpty());
  EXPECT_EQ(ran.error_lines(), 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr("INVALID_REQUEST: spec.sampling.top_p must be in (0, 1], got 2"));
}

TEST(Generate, NoticesLostChunksAndUnfinishedStreams) {
  FakeServer lossy;
  lossy.skip_sequence_at = 2;
  const Ran lost = Execute(Generate, {"--address", lossy.address(), "--prompt", "x"});
  EXPECT_EQ(lost.code, 1);
  EXPECT_THAT(lost.err, HasSubstr("chunk 3 where 2 was due"));
  FakeServer silent;
  silent.texts = {};
  const Ran unfinished = Execute(Generate, {"--address", silent.address(), "--prompt", "x"});
  EXPECT_EQ(unfinished.code, 1);
  EXPECT_EQ(unfinished.error_lines(), 1);
}

TEST(Generate, ChoosesTheModelOrAsks) {
  FakeServer server;
  server.models = {"a", "b"};
  const Ran unclear = Execute(Generate, {"--address", server.address(), "--prompt", "x"});
  EXPECT_EQ(unclear.code, 1);
  EXPECT_THAT(unclear.err, HasSubstr("choose one by --model: a, b"));
  EXPECT_EQ(
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--model", "b"}).code, 0);
  EXPECT_EQ(server.last_spec().model(), "b");
  const Ran unknown =
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--model", "c"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("no model 'c'"));
}

TEST(Generate, RefusesUnclearArguments) {
  const FakeServer server;
  EXPECT_EQ(Execute(Generate, {"--address", server.address()}).code, 1);
  EXPECT_EQ(
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--token-ids", "1"}).code,
      1);
  EXPECT_EQ(
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--logprobs", "1"}).code,
      1);
  EXPECT_EQ(Execute(Generate, {"--address", "nowhere", "--prompt", "x"}).code, 1);
  EXPECT_EQ(server.streams(), 0);
}

TEST(Generate, TimeoutEndsIt) {
  FakeServer server;
  server.hold = true;
  const Ran ran =
      Execute(Generate, {"--address", server.address(), "--prompt", "x", "--timeout", "0.2"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("DEADLINE_EXCEEDED"));
}

TEST(Generate, InterruptCancelsTheCall) {
  FakeServer server;
  server.hold = true;
  Interrupt interrupt;
  std::thread user([&] {
    while (server.streams() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_TRUE(interrupt.Trip());
  });
  const Ran ran =
      Execute(Generate, {"--address", server.address(), "--prompt", "x"}, "", false, &interrupt);
  user.join();
  EXPECT_EQ(ran.code, 130);
  EXPECT_EQ(ran.err, "qserve: interrupted\n");
  EXPECT_FALSE(interrupt.Trip()) << "no call is left to cancel";
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!server.saw_cancel() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_TRUE(server.saw_cancel());
}

TEST(Chat, KeepsTheConversation) {
  const FakeServer server;
  const Ran ran = Execute(Chat, {"--address", server.address(), "--system", "Be short."},
                          "Hi\n\nAnd now?\n/exit\nnever read\n");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "Hello, world\nHello, world\n");
  EXPECT_EQ(server.streams(), 2);
  const v1::GenerationSpec spec = server.last_spec();
  const auto& messages = spec.prompt().chat().messages();
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].role(), "system");
  EXPECT_EQ(messages[1].content(), "Hi");
  EXPECT_EQ(messages[2].role(), "assistant");
  EXPECT_EQ(messages[2].content(), "Hello, world");
  EXPECT_EQ(messages[3].content(), "And now?");
}

TEST(Chat, FirstErrorEndsAPipe) {
  FakeServer server;
  server.stream_status =
      rpc::MakeError(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", {.reason = rpc::kQueueFull});
  const Ran ran = Execute(Chat, {"--address", server.address()}, "Hi\nAgain\n");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(server.streams(), 1);
  EXPECT_EQ(ran.err, "qserve: QUEUE_FULL: full\n");
}

TEST(Chat, RefusesAModelWithoutTemplate) {
  FakeServer server;
  server.models = {"plain"};
  const Ran ran = Execute(Chat, {"--address", server.address()}, "Hi\n");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("no chat template"));
}

TEST(Status, KnowsRouterAndReplica) {
  const FakeServer router;
  const Ran of_router = Execute(Status, {"--address", router.address()});
  EXPECT_EQ(of_router.code, 0) << of_router.err;
  EXPECT_THAT(of_router.out, HasSubstr("ready (router)"));
  EXPECT_THAT(of_router.out, HasSubstr("model fake"));
  const FakeServer replica(true);
  const Ran of_replica = Execute(Status, {"--address", replica.address(), "--json"});
  EXPECT_EQ(of_replica.code, 0) << of_replica.err;
  const auto json = nlohmann::json::parse(of_replica.out);
  EXPECT_TRUE(json["ready"]);
  EXPECT_EQ(json["replica"]["running"], 7);
  EXPECT_EQ(json["models"][0]["name"], "fake");
}

TEST(Status, FailsUntilReady) {
  FakeServer empty;
  empty.models = {};
  const Ran unready = Execute(Status, {"--address", empty.address()});
  EXPECT_EQ(unready.code, 1);
  EXPECT_EQ(unready.error_lines(), 1);
  FakeServer draining(true);
  draining.draining = true;
  const Ran leaving = Execute(Status, {"--address", draining.address(), "--json"});
  EXPECT_EQ(leaving.code, 1);
  EXPECT_FALSE(nlohmann::json::parse(leaving.out)["ready"]);
  EXPECT_THAT(leaving.err, HasSubstr("draining"));
}

TEST(Status, UnreachableServerIsOneLine) {
  std::string address;
  {
    const FakeServer gone;
    address = gone.address();
  }
  const Ran ran = Execute(Status, {"--address", address, "--wait", "0.3"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.error_lines(), 1);
  EXPECT_THAT(ran.err, HasSubstr("no answer from " + address));
}

}  // namespace
}  // namespace qserve::client
