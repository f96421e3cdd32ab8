// What the edge knows of the model it serves. Immutable after start-up; read by every gRPC thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/checkpoint/model_config.h"
#include "worker/text/chat_template.h"
#include "worker/text/tokenizer.h"

namespace qserve::worker::serve {

struct ServedModel {
  std::string name;
  std::string architecture;
  std::string quantization;  // for people: "w4a8kv4-g128", "bf16"
  std::string numerics_id;
  int32_t max_model_len = 0;
  int32_t vocab_size = 0;
  int32_t tensor_parallel_size = 1;
  std::vector<int32_t>
      eos_token_ids;  // union of config.json, generation_config.json and the tokenizer's
  checkpoint::GenerationDefaults defaults;
  std::optional<uint64_t>
      default_seed;  // --seed: for requests without one; unset: drawn for each request
  std::unique_ptr<text::Tokenizer> tokenizer;  // null: the directory has none, prompts must be
                                               // token ids and answers have no text
  std::unique_ptr<text::ChatTemplate> chat_template;  // null: the model has none
};

}  // namespace qserve::worker::serve
