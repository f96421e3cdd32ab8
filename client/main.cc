// qserve: the command-line client. The main thread runs the command; a second one waits for Ctrl-C
// and cancels the call under way, so that the server stops generating at once.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string_view>

#include "client/commands.h"
#include "common/cli/version.h"
#include "common/shutdown.h"

namespace qserve::client {
namespace {

constexpr std::string_view kUsage =
    "Usage: qserve COMMAND [OPTIONS]\n"
    "\n"
    "Talks to a qserve router or replica.\n"
    "\n"
    "Commands:\n"
    "  generate   stream a completion of a prompt\n"
    "  chat       hold a conversation\n"
    "  status     say whether the server takes requests, and for which models\n"
    "\n"
    "qserve COMMAND --help lists a command's options; each is also an environment variable\n"
    "(--max-tokens is QSERVE_MAX_TOKENS) and a key of a --config file.\n";

int Main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "--version") {
    std::cout << cli::kVersion << '\n';
    return kExitOk;
  }
  if (command == "--help" || command == "-h" || command == "help") {
    std::cout << kUsage;
    return kExitOk;
  }
  Interrupt interrupt;
  const ShutdownSignal signals([&interrupt](int count) {
    // Nothing to cancel (a line is being read), or the user insists.
    if (!interrupt.Trip() || count > 1) std::_Exit(kExitInterrupted);
  });
  const Console console = {.in = std::cin,
                           .out = std::cout,
                           .err = std::cerr,
                           .in_is_terminal = ::isatty(STDIN_FILENO) == 1,
                           .out_is_terminal = ::isatty(STDOUT_FILENO) == 1};
  if (command == "generate") return Generate(argc - 1, argv + 1, console, interrupt);
  if (command == "chat") return Chat(argc - 1, argv + 1, console, interrupt);
  if (command == "status") return Status(argc - 1, argv + 1, console, interrupt);
  std::cerr << kUsage;
  return kExitError;
}

}  // namespace
}  // namespace qserve::client

int main(int argc, char** argv) { return qserve::client::Main(argc, argv); }
