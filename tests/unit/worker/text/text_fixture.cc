#include "tests/unit/worker/text/text_fixture.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "gtest/gtest.h"

namespace qserve::worker::text {

ModelDir::ModelDir(const std::map<std::string, std::string>& files) {
  std::string pattern = (std::filesystem::temp_directory_path() / "qserve_text_XXXXXX").string();
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  path_ = pattern;
  for (const auto& [name, contents] : files) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << contents;
  }
}

ModelDir::~ModelDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ReadProjectFile(const std::string& path) {
  // Tests run in the project's root.
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream contents;
  contents << file.rdbuf();
  return contents.str();
}

const std::vector<std::string>& GoldenNames() {
  static const std::vector<std::string> names = {"llama3", "llama2", "metaspace", "qwen", "demo"};
  return names;
}

nlohmann::ordered_json Golden(const std::string& name) {
  return nlohmann::ordered_json::parse(
      ReadProjectFile("tests/golden/text/" + name + ".golden.json"));
}

std::map<std::string, std::string> ModelFiles(const std::string& name,
                                              const std::string& chat_template) {
  const std::string prefix =
      name == "demo" ? "deploy/demo-model/" : "tests/golden/text/" + name + ".";
  nlohmann::ordered_json config =
      nlohmann::ordered_json::parse(ReadProjectFile(prefix + "tokenizer_config.json"));
  if (!chat_template.empty()) config["chat_template"] = chat_template;
  return {{"tokenizer.json", ReadProjectFile(prefix + "tokenizer.json")},
          {"tokenizer_config.json", config.dump()}};
}

std::unique_ptr<Tokenizer> LoadGoldenTokenizer(const std::string& name) {
  const ModelDir dir(ModelFiles(name));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(dir.path());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadTemplate(const std::string& name,
                                                           const std::string& chat_template) {
  const ModelDir dir(ModelFiles(name, chat_template));
  return ChatTemplate::Load(dir.path());
}

bool IsUtf8(std::string_view text) {
  // The JSON library checks strictly, and throws.
  try {
    static_cast<void>(nlohmann::ordered_json(text).dump());
    return true;
  } catch (const nlohmann::ordered_json::exception&) {
    return false;
  }
}

}  // namespace qserve::worker::text
