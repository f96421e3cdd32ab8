// A sequence's tokens as one row, although the prompt is shared by all candidates of its request.
#include "worker/sched/sequence.h"

#include <algorithm>

#include "common/check.h"

namespace qserve::worker::sched {

int32_t Sequence::known_tokens() const {
  return request->prompt_tokens() + static_cast<int32_t>(output.size());
}

int32_t Sequence::remaining() const {
  const int32_t drawn = static_cast<int32_t>(output.size()) + samples_in_flight;
  if (drawn >= request->request.max_tokens) return 0;  // the last token is never fed
  return request->prompt_tokens() + drawn - scheduled;
}

void Sequence::CopyTokens(int32_t first, int32_t count, int32_t* out) const {
  QSERVE_CHECK(first >= 0 && count >= 0 && first + count <= known_tokens());
  const std::vector<int32_t>& prompt = request->request.prompt;
  const int32_t from_prompt = std::clamp(request->prompt_tokens() - first, 0, count);
  out = std::copy_n(prompt.begin() + first, from_prompt, out);
  const int32_t from_output = count - from_prompt;
  if (from_output == 0) return;
  std::copy_n(output.begin() + (first + from_prompt - request->prompt_tokens()), from_output, out);
}

BlockTokens Sequence::TokensOfBlock(int32_t index,
                                    std::array<int32_t, plan::kBlockTokens>& scratch) const {
  const int32_t first = index * plan::kBlockTokens;
  if (first + plan::kBlockTokens <= request->prompt_tokens()) {
    return BlockTokens(request->request.prompt.data() + first, plan::kBlockTokens);
  }
  CopyTokens(first, plan::kBlockTokens, scratch.data());
  return BlockTokens(scratch);
}

}  // namespace qserve::worker::sched
