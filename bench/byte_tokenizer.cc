// See byte_tokenizer.h.
#include "bench/byte_tokenizer.h"

#include <cstdint>
#include <nlohmann/json.hpp>

namespace qserve::bench {
namespace {

using Json = nlohmann::ordered_json;

// Byte-level tokenizers write a byte as one printable character: itself where it is printable, else
// the next free one from 256 on.
uint32_t CharacterOf(int byte, uint32_t& next_free) {
  const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
                         (byte >= 0xae && byte <= 0xff);
  return printable ? static_cast<uint32_t>(byte) : next_free++;
}

// Code points below 2048.
std::string Utf8(uint32_t character) {
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xc0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3f))};
}

}  // namespace

std::string ByteTokenizerJson() {
  Json vocabulary = Json::object();
  uint32_t next_free = 256;
  for (int byte = 0; byte < 256; ++byte) vocabulary[Utf8(CharacterOf(byte, next_free))] = byte;
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", vocabulary},
                      {"merges", Json::array()}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", Json::array()},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model", model}};
  return tokenizer.dump(1) + "\n";
}

std::string ByteTokenizerConfigJson() {
  const Json config = {
      {"tokenizer_class", "PreTrainedTokenizerFast"},
      {"clean_up_tokenization_spaces", false},
      {"chat_template",
       "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + "
       "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"}};
  return config.dump(2) + "\n";
}

}  // namespace qserve::bench
