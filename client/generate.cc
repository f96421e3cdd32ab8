// `qserve generate`: one completion, streamed as text or given as one JSON object.
#include <fmt/format.h>

#include <ostream>
#include <string>

#include "client/answer.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "common/status_macros.h"

namespace qserve::client {
namespace {

constexpr std::chrono::seconds kSmallCallTimeout{10};

struct Flags {
  RequestFlags request;
  std::string prompt;
  std::string token_ids;
  int32_t n = 1;
  std::optional<int32_t> logprobs;
  bool ignore_eos = false;
  bool json = false;
};

void Declare(cli::Options& options, Flags& flags) {
  options.Add("prompt", flags.prompt, "Text to continue; - reads it from standard input");
  options.Add("token-ids", flags.token_ids, "Prompt as token ids instead: 1,2,3");
  DeclareRequest(options, flags.request);
  options.Add("n", flags.n, "Candidates, 1 to 16")->check(CLI::Range(1, 16));
  options.Add("logprobs", flags.logprobs, "With --json: log-probabilities of that many tokens too");
  options.AddFlag("ignore-eos", flags.ignore_eos, "Go on after the model's end-of-text tokens");
  options.AddFlag("json", flags.json, "One JSON object on standard output at the end");
}

absl::Status FillPrompt(const Flags& flags, const Console& console, v1::Prompt& out) {
  if (flags.prompt.empty() == flags.token_ids.empty())
    return absl::InvalidArgumentError("give a --prompt or --token-ids");
  if (!flags.token_ids.empty()) {
    ASSIGN_OR_RETURN(const auto ids, ParseTokenIds(flags.token_ids));
    out.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  }
  if (flags.prompt == "-") {
    ASSIGN_OR_RETURN(*out.mutable_text(), ReadPrompt(console.in));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckUtf8("--prompt", flags.prompt));
  out.set_text(flags.prompt);
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerationSpec> SpecOf(const Flags& flags, const Console& console) {
  ASSIGN_OR_RETURN(v1::GenerationSpec spec, MakeSpec(flags.request));
  RETURN_IF_ERROR(FillPrompt(flags, console, *spec.mutable_prompt()));
  if (flags.logprobs && !flags.json)
    return absl::InvalidArgumentError("--logprobs are shown with --json only");
  if (flags.logprobs) spec.mutable_output()->set_logprobs(*flags.logprobs);
  spec.mutable_output()->set_n(flags.n);
  spec.mutable_stopping()->set_ignore_eos(flags.ignore_eos);
  return spec;
}

// The candidates one below the other: they came interleaved.
absl::Status PrintCandidates(const Answer& answer, const Console& console) {
  for (const v1::Candidate& candidate : answer.candidates())
    RETURN_IF_ERROR(Print(console, fmt::format("[{}] {}\n", candidate.index(), candidate.text())));
  return absl::OkStatus();
}

absl::Status PrintJson(const Answer& answer, const Console& console) {
  constexpr auto kReplace = nlohmann::json::error_handler_t::replace;
  return Print(console, answer.ToJson().dump(-1, ' ', false, kReplace) + "\n");
}

absl::Status Run(const Flags& flags, const Console& console, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto connection, Connection::Create(flags.request.address, interrupt));
  ASSIGN_OR_RETURN(v1::GenerationSpec spec, SpecOf(flags, console));
  ASSIGN_OR_RETURN(const v1::Model model,
                   connection->FindModel(flags.request.model, kSmallCallTimeout));
  spec.set_model(model.name());
  const bool streams = !flags.json && flags.n == 1;
  bool at_line_start = true;
  const auto print = [&](const v1::StreamGenerateResponse& chunk) -> absl::Status {
    if (!streams || chunk.text_delta().empty()) return absl::OkStatus();
    at_line_start = chunk.text_delta().back() == '\n';
    return Print(console, chunk.text_delta());
  };
  Answer answer(std::chrono::steady_clock::now());
  const absl::Status status =
      StreamAnswer(*connection, spec, AnswerTimeout(flags.request), answer, print);
  if (!at_line_start) console.out << std::endl;
  RETURN_IF_ERROR(status);
  if (flags.json) return PrintJson(answer, console);
  if (!streams) RETURN_IF_ERROR(PrintCandidates(answer, console));
  console.err << fmt::format("[{}]", answer.Summary()) << std::endl;
  return absl::OkStatus();
}

}  // namespace

int Generate(int argc, const char* const* argv, const Console& console, Interrupt& interrupt) {
  Flags flags;
  cli::Options options("qserve generate", "Generates text and streams it");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  const absl::Status status = Run(flags, console, interrupt);
  return Report(console, interrupt.tripped() ? absl::CancelledError("interrupted") : status);
}

}  // namespace qserve::client
