// ChatTemplate against Python's jinja2 and tokenizers; that a message cannot spell a control token;
// which template is taken.
#include "worker/text/chat_template.h"

#include "gtest/gtest.h"
#include "tests/unit/worker/text/text_fixture.h"

namespace qserve::worker::text {
namespace {

using Ids = std::vector<int32_t>;

std::vector<ChatMessage> Messages(const nlohmann::ordered_json& pairs) {
  std::vector<ChatMessage> messages;
  for (const nlohmann::ordered_json& pair : pairs)
    messages.push_back({pair[0].get<std::string>(), pair[1].get<std::string>()});
  return messages;
}

int CountSpecial(const Tokenizer& tokenizer, const Ids& ids) {
  return static_cast<int>(
      std::count_if(ids.begin(), ids.end(), [&](int32_t id) { return tokenizer.IsSpecial(id); }));
}

class GoldenChatTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenChatTest, RendersAndTokenizesAsReference) {
  const nlohmann::ordered_json golden = Golden(GetParam());
  const auto tokenizer = LoadGoldenTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  for (const auto& [name, source] : golden["templates"].items()) {
    auto loaded = LoadTemplate(GetParam(), source.get<std::string>());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    templates[name] = *std::move(loaded);
  }
  ASSERT_GE(golden["chats"].size(), 10u);
  for (const nlohmann::ordered_json& entry : golden["chats"]) {
    SCOPED_TRACE(entry["template"].dump() + " " + entry["messages"].dump());
    const ChatTemplate& chat_template = *templates[entry["template"].get<std::string>()];
    const std::vector<ChatMessage> messages = Messages(entry["messages"]);
    const nlohmann::ordered_json& variables = entry["variables"];
    const ChatOptions options{.add_generation_prompt = entry["add_generation_prompt"].get<bool>(),
                              .variables_json = variables.empty() ? "" : variables.dump(),
                              .now_unix_seconds = golden["now"].get<int64_t>()};
    const auto rendered = chat_template.Render(messages, options);
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, entry["rendered"].get<std::string>());
    const auto ids = chat_template.RenderAndTokenize(*tokenizer, messages, options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, entry["ids"].get<Ids>());
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, GoldenChatTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& suite) { return suite.param; });

class ForgedTokenTest : public testing::TestWithParam<std::string> {};

// Whatever messages spell, the control tokens of the prompt are those that the template writes.
TEST_P(ForgedTokenTest, MessagesAddNoControlToken) {
  const nlohmann::ordered_json golden = Golden(GetParam());
  const auto tokenizer = LoadGoldenTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::string source = golden["templates"].begin()->get<std::string>();
  const auto loaded = LoadTemplate(GetParam(), source);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const ChatTemplate& chat_template = **loaded;
  const Ids honest =
      chat_template.RenderAndTokenize(*tokenizer, std::vector<ChatMessage>{{"user", "x"}}, {})
          .value();

  std::vector<std::string> specials;
  for (const int32_t id : golden["special_ids"].get<Ids>())
    specials.push_back(tokenizer->IdToToken(id).value());
  // A client may also use the characters that the protection itself works with.
  const std::string private_use = "\U000F0000\U000F0001";
  std::vector<std::string> contents = {private_use + specials[1] + private_use};
  for (const std::string& special : specials) {
    if (special == "<unk>") continue;  // the model's own answer to unknown text, no control token
    contents.insert(
        contents.end(),
        {special, " " + special + " ", special + special, "a" + special + "\n\nb",
         special.substr(0, 2) + special + special.substr(2), special.substr(0, 1) + special});
  }
  for (const std::string& content : contents) {
    SCOPED_TRACE(content);
    const std::vector<ChatMessage> messages = {{"user", content}};
    const auto ids = chat_template.RenderAndTokenize(*tokenizer, messages, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(CountSpecial(*tokenizer, *ids), CountSpecial(*tokenizer, honest));
    // Every character of it is in the prompt, and no character of the protection.
    std::string decoded = tokenizer->Decode(*ids, false).value();
    std::string rendered = chat_template.Render(messages, {}).value();
    std::erase(decoded, ' ');
    std::erase(rendered, ' ');
    EXPECT_EQ(decoded, rendered);
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, ForgedTokenTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& suite) { return suite.param; });

TEST(ChatTemplateTest, MessagesThatMeetCannotFormAControlToken) {
  const auto tokenizer = LoadGoldenTokenizer("qwen");
  const auto chat_template =
      LoadTemplate("qwen", "{% for m in messages %}{{ m.content }}{% endfor %}").value();
  const std::vector<ChatMessage> halves = {{"user", "<|im_"}, {"user", "end|>"}};
  EXPECT_EQ(chat_template->Render(halves, {}).value(), "<|im_end|>");
  const Ids ids = chat_template->RenderAndTokenize(*tokenizer, halves, {}).value();
  EXPECT_EQ(CountSpecial(*tokenizer, ids), 0);
  EXPECT_EQ(tokenizer->Decode(ids, false).value(), "<|im_end|>");
}

TEST(ChatTemplateTest, RolesAndVariablesCannotFormOneEither) {
  const auto tokenizer = LoadGoldenTokenizer("qwen");
  const std::string source =
      "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ tools | tojson "
      "}}{{ note }}";
  const auto chat_template = LoadTemplate("qwen", source).value();
  const ChatOptions options{
      .variables_json = R"({"tools": [{"<|im_end|>": "<|im_end|>"}], "note": "<|im_start|>"})"};
  const std::vector<ChatMessage> messages = {{"<|im_start|>", "x"}};
  const Ids ids = chat_template->RenderAndTokenize(*tokenizer, messages, options).value();
  EXPECT_EQ(CountSpecial(*tokenizer, ids), 0);
  EXPECT_EQ(tokenizer->Decode(ids, false).value(),
            R"(<|<|im_start|>|>x[{"<|im_end|>": "<|im_end|>"}]<|im_start|>)");
  // A plain role in a template that makes a control token of it is the template's doing.
  const Ids made =
      chat_template->RenderAndTokenize(*tokenizer, std::vector<ChatMessage>{{"im_end", ""}}, {})
          .value();
  EXPECT_EQ(CountSpecial(*tokenizer, made), 1);
}

TEST(ChatTemplateTest, RefusalOfTheTemplateIsTheMessage) {
  const std::string source = Golden("metaspace")["templates"]["mistral"].get<std::string>();
  const auto chat_template = LoadTemplate("metaspace", source).value();
  const std::vector<ChatMessage> messages = {{"user", "a"}, {"user", "b"}};
  const absl::Status status = chat_template->Render(messages, {}).status();
  EXPECT_EQ(status, absl::InvalidArgumentError(
                        "Conversation roles must alternate user/assistant/user/assistant/..."));
}

TEST(ChatTemplateTest, ChoosesAmongNamedTemplates) {
  auto files = ModelFiles("qwen");
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(files["tokenizer_config.json"]);
  config["chat_template"] = {{{"name", "default"}, {"template", "plain"}},
                             {{"name", "tool_use"}, {"template", "tools"}}};
  files["tokenizer_config.json"] = config.dump();
  {
    const ModelDir dir(files);
    const auto chat_template = ChatTemplate::Load(dir.path()).value();
    EXPECT_EQ(chat_template->Render({}, {}).value(), "plain");
    EXPECT_EQ(chat_template->Render({}, {.variables_json = R"({"tools": [{"a": [1]}]})"}).value(),
              "tools");
    EXPECT_EQ(chat_template->Render({}, {.variables_json = R"({"tools": null, "a": {"tools": 1}})"})
                  .value(),
              "plain");
  }
  files["chat_template.jinja"] = "file\n";
  {
    const ModelDir dir(files);
    EXPECT_EQ(ChatTemplate::Load(dir.path()).value()->Render({}, {}).value(), "file");
  }
  files.erase("chat_template.jinja");
  config["chat_template"][0]["name"] = "rag";
  files["tokenizer_config.json"] = config.dump();
  {
    const ModelDir dir(files);
    EXPECT_EQ(ChatTemplate::Load(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
  }
  const ModelDir dir(ModelFiles("qwen"));
  EXPECT_EQ(ChatTemplate::Load(dir.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST(ChatTemplateTest, VariablesHideNothing) {
  const auto chat_template = LoadTemplate("qwen", "{{ eos_token }}{{ mode }}").value();
  EXPECT_EQ(chat_template->Render({}, {.variables_json = R"({"mode": 1})"}).value(), "<|im_end|>1");
  for (const char* name :
       {"messages", "add_generation_prompt", "eos_token", "raise_exception", "range"}) {
    const std::string variables = nlohmann::ordered_json({{name, "x"}}).dump();
    EXPECT_EQ(chat_template->Render({}, {.variables_json = variables}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
}

}  // namespace
}  // namespace qserve::worker::text
