#include "worker/text/chat_template.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/text/ffi.h"
#include "worker/text/model_files.h"

namespace qserve::worker::text {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
// A real template spends some hundred instructions per message, and nests a few macros and loops.
constexpr QserveTemplateLimits kLimits{
    .fuel = 5'000'000, .recursion = 100, .max_output_size = size_t{32} << 20};

// Template variables that transformers takes from the tokenizer's named tokens.
constexpr const char* kTokenNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

struct Sources {
  std::optional<std::string> main;
  std::optional<std::string> tool_use;
};

// "chat_template" of tokenizer_config.json: a string, or [{"name": ..., "template": ...}, ...].
absl::StatusOr<Sources> SourcesOfConfig(const nlohmann::json& config) {
  Sources sources;
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return sources;
  if (found->is_string()) {
    sources.main = found->get<std::string>();
    return sources;
  }
  if (!found->is_array())
    return absl::InvalidArgumentError("chat_template is neither a string nor a list");
  for (const nlohmann::json& entry : *found) {
    const bool valid = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template") && entry["template"].is_string();
    if (!valid)
      return absl::InvalidArgumentError("chat_template has an entry without a name or a template");
    const auto name = entry["name"].get<std::string>();
    if (name == "default" || found->size() == 1)
      sources.main = entry["template"].get<std::string>();
    if (name == "tool_use") sources.tool_use = entry["template"].get<std::string>();
  }
  if (!sources.main.has_value())
    return absl::InvalidArgumentError("no chat_template is named \"default\"");
  return sources;
}

// JSON text of `value`. The library throws on strings that are not UTF-8, which clients may send.
absl::StatusOr<std::string> Dump(const nlohmann::json& value) {
  try {
    return value.dump();
  } catch (const nlohmann::json::exception&) {
    return absl::InvalidArgumentError("text is not valid UTF-8");
  }
}

absl::StatusOr<std::string> GlobalsOf(const TokenizerConfig& files) {
  nlohmann::json globals = nlohmann::json::object();
  for (const char* name : kTokenNames) {
    if (std::optional<std::string> text = files.TokenText(name); text.has_value())
      globals[name] = *std::move(text);
  }
  return Dump(globals);
}

absl::StatusOr<std::string> ContextOf(std::span<const ChatMessage> messages,
                                      const ChatOptions& options) {
  size_t bytes = options.variables_json.size();
  for (const ChatMessage& message : messages) bytes += message.role.size() + message.content.size();
  if (bytes > options.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages have ", bytes, " bytes, more than the ", options.max_bytes, " allowed"));
  }
  nlohmann::json list = nlohmann::json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return Dump(
      {{"messages", std::move(list)}, {"add_generation_prompt", options.add_generation_prompt}});
}

QserveTemplateInput InputOf(const std::string& context, const ChatOptions& options) {
  return {.context = BytesOf(context),
          .context_size = context.size(),
          .variables = BytesOf(options.variables_json),
          .variables_size = options.variables_json.size(),
          .now_unix_seconds = options.now_unix_seconds};
}

}  // namespace

void ChatTemplate::Destroy::operator()(QserveTemplate* handle) const {
  qserve_template_destroy(handle);
}

absl::StatusOr<ChatTemplate::Handle> ChatTemplate::Compile(const std::string& source,
                                                           const std::string& globals_json) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat template has ", source.size(),
                                                   " bytes, more than the ", kMaxTemplateBytes,
                                                   " allowed"));
  }
  QserveTemplate* raw = nullptr;
  FfiBytes error;
  const QserveTextCode code =
      qserve_template_create(BytesOf(source), source.size(), BytesOf(globals_json),
                             globals_json.size(), kLimits, &raw, error.slot());
  RETURN_IF_ERROR(FfiStatus(code, error));
  return Handle(raw);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const TokenizerConfig files, ReadTokenizerConfig(model_dir));
  Sources sources;
  ASSIGN_OR_RETURN(sources.main,
                   ReadModelFile(model_dir, "chat_template.jinja", kMaxTemplateBytes));
  if (!sources.main.has_value()) {
    ASSIGN_OR_RETURN(sources, SourcesOfConfig(files.config));
  }
  if (!sources.main.has_value())
    return absl::NotFoundError(absl::StrCat(model_dir, " has no chat template"));

  ASSIGN_OR_RETURN(const std::string globals, GlobalsOf(files));
  auto chat_template = std::unique_ptr<ChatTemplate>(new ChatTemplate());
  ASSIGN_OR_RETURN(chat_template->default_, Compile(*sources.main, globals));
  if (sources.tool_use.has_value()) {
    ASSIGN_OR_RETURN(chat_template->tool_use_, Compile(*sources.tool_use, globals));
  }
  return chat_template;
}

const QserveTemplate* ChatTemplate::Choose(const ChatOptions& options) const {
  if (tool_use_ == nullptr || options.variables_json.empty()) return default_.get();
  // The top level alone is looked at; a text that does not parse is refused by the render, with the
  // reason.
  const auto top_level = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    return depth <= 1;
  };
  const nlohmann::json parsed =
      nlohmann::json::parse(options.variables_json, top_level, /*allow_exceptions=*/false);
  const bool has_tools =
      parsed.is_object() && parsed.contains("tools") && !parsed["tools"].is_null();
  return has_tools ? tool_use_.get() : default_.get();
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                 const ChatOptions& options) const {
  ASSIGN_OR_RETURN(const std::string context, ContextOf(messages, options));
  FfiBytes text;
  FfiBytes error;
  const QserveTextCode code =
      qserve_template_render(Choose(options), InputOf(context, options), text.slot(), error.slot());
  RETURN_IF_ERROR(FfiStatus(code, error));
  return text.ToString();
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::RenderAndTokenize(
    const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
    const ChatOptions& options) const {
  ASSIGN_OR_RETURN(const std::string context, ContextOf(messages, options));
  FfiIds ids;
  FfiBytes error;
  const QserveTextCode code = qserve_template_tokenize(
      Choose(options), tokenizer.handle(), InputOf(context, options), ids.slot(), error.slot());
  RETURN_IF_ERROR(FfiStatus(code, error));
  return ids.ToVector();
}

}  // namespace qserve::worker::text
