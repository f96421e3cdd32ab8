#include "client/request_flags.h"

#include <fmt/format.h>

#include <charconv>
#include <istream>
#include <iterator>
#include <string_view>

#include "client/terminal_text.h"
#include "common/status_macros.h"

namespace qserve::client {
namespace {

// What routers and replicas take as one message.
constexpr size_t kMaxPromptBytes = 8 << 20;

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

// CLI11 by itself takes -1 for the largest seed.
std::string CheckSeed(const std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole ? "" : "must be a number of 64 bits without sign";
}

void FillSampling(const RequestFlags& flags, v1::SamplingParams& out) {
  if (flags.temperature) out.set_temperature(*flags.temperature);
  if (flags.top_p) out.set_top_p(*flags.top_p);
  if (flags.top_k) out.set_top_k(*flags.top_k);
  if (flags.min_p) out.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) out.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) out.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) out.set_frequency_penalty(*flags.frequency_penalty);
  if (flags.seed) out.set_seed(*flags.seed);
}

}  // namespace

void DeclareRequest(cli::Options& options, RequestFlags& flags) {
  options.Add("address", flags.address, "Router or replica, HOST:PORT");
  options.Add("model", flags.model, "Model's name; default: the only one served");
  options.Add("max-tokens", flags.max_tokens, "Tokens to generate at most; default: the context's");
  options.Add("min-tokens", flags.min_tokens, "Tokens to generate at least");
  options.Add("temperature", flags.temperature, "0 is greedy; default: the model's, as for others");
  options.Add("top-p", flags.top_p, "Draw from the most likely tokens of this total probability");
  options.Add("top-k", flags.top_k, "Draw from that many most likely tokens; 0: all");
  options.Add("min-p", flags.min_p, "Draw from tokens at least this likely beside the likeliest");
  options.Add("repetition-penalty", flags.repetition_penalty, "Above 1: repeat less");
  options.Add("presence-penalty", flags.presence_penalty, "Above 0: repeat less");
  options.Add("frequency-penalty", flags.frequency_penalty, "Above 0: repeat less often");
  options.Add("seed", flags.seed, "The same seed gives the same tokens; default: drawn")
      ->check(CheckSeed);
  options.Add("stop", flags.stop, "End at this text; may be given several times")
      ->allow_extra_args(false);
  options.Add("session-id", flags.session_id, "Requests of one session prefer one replica");
  options.Add("timeout", flags.timeout, "Seconds that an answer may take; 0: any")
      ->check(CLI::Range(0.0, 1e6));
}

std::chrono::milliseconds AnswerTimeout(const RequestFlags& flags) {
  return std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(flags.timeout));
}

absl::Status CheckUtf8(const std::string& what, const std::string& text) {
  if (IsUtf8(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} is not UTF-8", what));
}

absl::StatusOr<v1::GenerationSpec> MakeSpec(const RequestFlags& flags) {
  RETURN_IF_ERROR(CheckUtf8("--model", flags.model));
  RETURN_IF_ERROR(CheckUtf8("--session-id", flags.session_id));
  v1::GenerationSpec spec;
  spec.set_session_id(flags.session_id);
  FillSampling(flags, *spec.mutable_sampling());
  v1::StoppingParams& stopping = *spec.mutable_stopping();
  if (flags.max_tokens) stopping.set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) stopping.set_min_tokens(*flags.min_tokens);
  for (const std::string& stop : flags.stop) {
    RETURN_IF_ERROR(CheckUtf8("--stop", stop));
    stopping.add_stop(stop);
  }
  return spec;
}

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view word = Trim(rest.substr(0, comma));
    int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0) {
      return absl::InvalidArgumentError(
          fmt::format("--token-ids must be numbers separated by commas, got '{}'",
                      OneLine(word.substr(0, 64))));
    }
    ids.push_back(id);
    if (comma == std::string_view::npos) return ids;
    rest.remove_prefix(comma + 1);
  }
}

absl::StatusOr<std::string> ReadPrompt(std::istream& in) {
  std::string text;
  char buffer[64 << 10];
  while (in.read(buffer, sizeof(buffer)) || in.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          fmt::format("the prompt on standard input has over {} bytes", kMaxPromptBytes));
    }
  }
  RETURN_IF_ERROR(CheckUtf8("the prompt on standard input", text));
  return text;
}

}  // namespace qserve::client
