// Model directories and goldens for the tests of worker/text.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "worker/text/chat_template.h"
#include "worker/text/tokenizer.h"

namespace qserve::worker::text {

// A temporary directory with the given files, removed with the object.
class ModelDir {
 public:
  explicit ModelDir(const std::map<std::string, std::string>& files);
  ~ModelDir();
  ModelDir(const ModelDir&) = delete;
  ModelDir& operator=(const ModelDir&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The whole of a file, by its path from the project's root.
std::string ReadProjectFile(const std::string& path);

// The tokenizers that have goldens.
const std::vector<std::string>& GoldenNames();

// NAME.golden.json.
nlohmann::ordered_json Golden(const std::string& name);

// The files of a golden tokenizer, as a model directory holds them; a chat template replaces the
// model's own if given.
std::map<std::string, std::string> ModelFiles(const std::string& name,
                                              const std::string& chat_template = "");

// A golden tokenizer. Fails the test and returns null when it does not load.
std::unique_ptr<Tokenizer> LoadGoldenTokenizer(const std::string& name);

// A chat template beside a golden tokenizer's files.
absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadTemplate(const std::string& name,
                                                           const std::string& chat_template);

// Whether `text` is UTF-8 as the standard has it: no overlong forms, no surrogates.
bool IsUtf8(std::string_view text);

}  // namespace qserve::worker::text
