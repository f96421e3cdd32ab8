// `qserve chat`: a conversation. Every line of input is a turn; the answers stream. Works from a
// pipe, too: then the first error ends it.
#include <fmt/format.h>

#include <istream>
#include <ostream>
#include <string>

#include "client/answer.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "client/terminal_text.h"
#include "common/status_macros.h"

namespace qserve::client {
namespace {

constexpr std::chrono::seconds kSmallCallTimeout{10};

struct Flags {
  RequestFlags request;
  std::string system;
};

class Conversation {
 public:
  Conversation(Connection& connection, const RequestFlags& flags, v1::GenerationSpec spec,
               const Console& console)
      : connection_(connection), flags_(flags), spec_(std::move(spec)), console_(console) {}

  void Add(const std::string& role, const std::string& content) {
    v1::ChatMessage& message = *chat().add_messages();
    message.set_role(role);
    message.set_content(content);
  }

  // Asks, streams the answer and keeps both; after an error neither is kept.
  absl::Status Turn(const std::string& text) {
    RETURN_IF_ERROR(CheckUtf8("the message", text));
    Add("user", text);
    bool at_line_start = true;
    const auto print = [&](const v1::StreamGenerateResponse& chunk) -> absl::Status {
      if (chunk.text_delta().empty()) return absl::OkStatus();
      at_line_start = chunk.text_delta().back() == '\n';
      return Print(console_, chunk.text_delta());
    };
    Answer answer(std::chrono::steady_clock::now());
    const absl::Status status =
        StreamAnswer(connection_, spec_, AnswerTimeout(flags_), answer, print);
    if (!at_line_start) console_.out << std::endl;
    if (!status.ok()) {
      chat().mutable_messages()->RemoveLast();
      return status;
    }
    Add("assistant", answer.candidates().front().text());
    if (console_.in_is_terminal) console_.err << fmt::format("[{}]", answer.Summary()) << std::endl;
    return absl::OkStatus();
  }

 private:
  v1::Chat& chat() { return *spec_.mutable_prompt()->mutable_chat(); }

  Connection& connection_;
  const RequestFlags& flags_;
  v1::GenerationSpec spec_;
  const Console& console_;
};

absl::Status Run(const Flags& flags, const Console& console, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto connection, Connection::Create(flags.request.address, interrupt));
  ASSIGN_OR_RETURN(v1::GenerationSpec spec, MakeSpec(flags.request));
  RETURN_IF_ERROR(CheckUtf8("--system", flags.system));
  ASSIGN_OR_RETURN(const v1::Model model,
                   connection->FindModel(flags.request.model, kSmallCallTimeout));
  if (!model.supports_chat()) {
    return absl::FailedPreconditionError(fmt::format(
        "model '{}' has no chat template; qserve generate continues plain text", model.name()));
  }
  spec.set_model(model.name());
  Conversation conversation(*connection, flags.request, std::move(spec), console);
  if (!flags.system.empty()) conversation.Add("system", flags.system);
  if (console.in_is_terminal)
    console.err << fmt::format("[{}; /exit or end of input ends]", OneLine(model.name()))
                << std::endl;
  std::string line;
  while (true) {
    if (console.in_is_terminal) console.err << "> " << std::flush;
    if (!std::getline(console.in, line) || line == "/exit") return absl::OkStatus();
    if (line.empty()) continue;
    const absl::Status status = conversation.Turn(line);
    if (status.ok()) continue;
    if (!console.in_is_terminal || interrupt.tripped()) return status;
    Report(console, status);
  }
}

}  // namespace

int Chat(int argc, const char* const* argv, const Console& console, Interrupt& interrupt) {
  Flags flags;
  cli::Options options("qserve chat", "A conversation: a line of input is a turn, /exit ends it");
  options.Add("system", flags.system, "The system message");
  DeclareRequest(options, flags.request);
  if (const auto code = options.Parse(argc, argv)) return *code;
  const absl::Status status = Run(flags, console, interrupt);
  return Report(console, interrupt.tripped() ? absl::CancelledError("interrupted") : status);
}

}  // namespace qserve::client
