#include "router/proxy/emitted.h"

#include <algorithm>

namespace qserve::router {
namespace {

// A replica that names a candidate beyond the API's limit is not believed.
constexpr int32_t kMaxCandidates = 64;

}  // namespace

Emitted::Candidate& Emitted::At(int32_t index) {
  const auto position = static_cast<size_t>(std::clamp(index, 0, kMaxCandidates - 1));
  if (position >= candidates_.size()) candidates_.resize(position + 1);
  return candidates_[position];
}

void Emitted::Note(v1::StreamGenerateResponse& chunk) {
  Candidate& candidate = At(chunk.candidate_index());
  candidate.token_ids.insert(candidate.token_ids.end(), chunk.token_ids().begin(),
                             chunk.token_ids().end());
  candidate.text_bytes += static_cast<int64_t>(chunk.text_delta().size());
  candidate.finished = candidate.finished || chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  if (any()) {
    chunk.clear_info();
  } else {
    numerics_id_ = chunk.info().numerics_id();
  }
  chunk.set_sequence_number(++sequence_number_);
}

int64_t Emitted::tokens() const {
  int64_t tokens = 0;
  for (const Candidate& candidate : candidates_)
    tokens += static_cast<int64_t>(candidate.token_ids.size());
  return tokens;
}

bool Emitted::finished(int candidates) const {
  return candidates_.size() >= static_cast<size_t>(candidates) &&
         std::all_of(candidates_.begin(), candidates_.end(),
                     [](const Candidate& c) { return c.finished; });
}

v1::GenerationSpec Emitted::Resume(const v1::GenerationSpec& spec) const {
  v1::GenerationSpec resumed = spec;
  const int candidates = spec.output().has_n() ? spec.output().n() : 1;
  v1::Resume& resume = *resumed.mutable_resume();
  const v1::Resume given = resume;  // the client itself may have resumed
  resume.Clear();
  resume.set_numerics_id(numerics_id_);
  for (int i = 0; i < candidates; ++i) {
    v1::ResumeCandidate& out = *resume.add_candidates();
    if (i < given.candidates_size()) out = given.candidates(i);
    if (static_cast<size_t>(i) >= candidates_.size()) continue;
    const Candidate& candidate = candidates_[static_cast<size_t>(i)];
    out.mutable_token_ids()->Add(candidate.token_ids.begin(), candidate.token_ids.end());
    out.set_text_bytes(out.text_bytes() + candidate.text_bytes);
    out.set_finished(out.finished() || candidate.finished);
  }
  return resumed;
}

}  // namespace qserve::router
