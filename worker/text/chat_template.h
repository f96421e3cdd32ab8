// The model's chat template (Jinja): turns messages into the prompt that the model was trained on.
// Loaded once by the worker at start-up, then used by every request thread: immutable and
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/text/tokenizer.h"

struct QserveTemplate;  // the Rust handle

namespace qserve::worker::text {

struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatOptions {
  // End with the beginning of the assistant's answer.
  bool add_generation_prompt = true;
  // More variables for the template, as a JSON object or empty: tools, documents, options such as
  // enable_thinking. A name that the template's environment already has is InvalidArgument.
  std::string variables_json;
  // The date for templates that ask for it (strftime_now), in UTC.
  int64_t now_unix_seconds = 0;
  // Messages and variables together; more is InvalidArgument.
  size_t max_bytes = kDefaultMaxTextBytes;
};

class ChatTemplate {
 public:
  // Reads chat_template.jinja, or else "chat_template" of tokenizer_config.json: one template, or a
  // list of named ones, of which "default" is used, and "tool_use" when tools are given. NotFound
  // when the model has none; InvalidArgument when one is too large or not a valid template.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& model_dir);

  // The prompt as text. InvalidArgument: text that is not UTF-8, too much of it, a template that
  // refuses the messages (raise_exception: its message is the status's), fails, or does more work
  // than a template may.
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages,
                                     const ChatOptions& options) const;

  // The prompt as token ids, equal to those of Render's text (special tokens parsed, none added
  // around it) except that special tokens spelled by messages or variables stay ordinary text: a
  // client cannot forge a turn. Special tokens of a single character are beyond this protection; no
  // known model has one.
  absl::StatusOr<std::vector<int32_t>> RenderAndTokenize(const Tokenizer& tokenizer,
                                                         std::span<const ChatMessage> messages,
                                                         const ChatOptions& options) const;

 private:
  struct Destroy {
    void operator()(QserveTemplate* handle) const;
  };
  using Handle = std::unique_ptr<QserveTemplate, Destroy>;

  static absl::StatusOr<Handle> Compile(const std::string& source, const std::string& globals_json);
  const QserveTemplate* Choose(const ChatOptions& options) const;

  Handle default_;
  Handle tool_use_;  // null unless the model names one
};

}  // namespace qserve::worker::text
