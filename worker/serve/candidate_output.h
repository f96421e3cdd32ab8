// One candidate's tokens on their way to text: incremental detokenization, stop strings,
// resumption. Pure (no threads, no gRPC); used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/engine/request.h"
#include "worker/serve/request_reader.h"
#include "worker/serve/served_model.h"
#include "worker/text/stream_decoder.h"

namespace qserve::worker::serve {

// What a client is to be told next.
struct OutputDelta {
  std::string text;
  std::vector<plan::SampledToken> tokens;
  engine::FinishReason finish = engine::FinishReason::kNone;
  std::string matched_stop;      // a stop string
  int32_t matched_stop_id = -1;  // or a stop id

  bool empty() const {
    return text.empty() && tokens.empty() && finish == engine::FinishReason::kNone;
  }
};

class CandidateOutput {
 public:
  // `prompt`'s last tokens prime the decoder. With a resume, `resumed` are the tokens already
  // generated and `sent_text_bytes` of their text are with the client.
  CandidateOutput(const ServedModel& model, const OutputOptions& options,
                  std::span<const int32_t> prompt, std::span<const int32_t> resumed,
                  int64_t sent_text_bytes);

  // Takes one event's tokens. After a stop string matched everything later is ignored; whoever
  // calls must then cancel the candidate in the engine (stop_matched turns true).
  absl::Status Push(const engine::TokenEvent& event);

  // What has become certain since the last call: text that may still turn out to begin a stop
  // string stays back until the end.
  OutputDelta Take();

  bool finished() const { return finish_ != engine::FinishReason::kNone; }
  bool stop_matched() const { return !matched_stop_.empty(); }
  int32_t output_tokens() const { return output_tokens_; }

 private:
  absl::Status PushToken(const plan::SampledToken& token, bool is_stop_id);
  void AppendText(const std::string& text);
  void FindStop();

  const ServedModel& model_;
  const OutputOptions& options_;
  std::unique_ptr<text::StreamDecoder> decoder_;  // null without a tokenizer
  std::vector<plan::SampledToken> tokens_;        // not yet taken
  std::string pending_;                           // text not yet taken
  int64_t skip_bytes_ = 0;                        // of the text that comes, already with the client
  int32_t output_tokens_ = 0;
  engine::FinishReason finish_ = engine::FinishReason::kNone;
  std::string matched_stop_;
  int32_t matched_stop_id_ = -1;
  bool finish_taken_ = false;
};

}  // namespace qserve::worker::serve
