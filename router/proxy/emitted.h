// What a client has received of a stream so far: enough to go on elsewhere, token for token
// (design: a stream survives its worker). Pure; guarded by its owner.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qserve/v1/inference.pb.h"

namespace qserve::router {

class Emitted {
 public:
  // Notes a chunk about to be forwarded and gives it its place in the client's stream: sequence
  // numbers go on without a gap, and a resumed stream does not introduce itself again.
  void Note(v1::StreamGenerateResponse& chunk);

  bool any() const { return sequence_number_ > 0; }
  int64_t tokens() const;
  const std::string& numerics_id() const { return numerics_id_; }

  // `spec` continued after what was noted.
  v1::GenerationSpec Resume(const v1::GenerationSpec& spec) const;

  // Every candidate's last chunk has been forwarded.
  bool finished(int candidates) const;

 private:
  struct Candidate {
    std::vector<int32_t> token_ids;
    int64_t text_bytes = 0;
    bool finished = false;
  };
  Candidate& At(int32_t index);

  std::vector<Candidate> candidates_;
  int64_t sequence_number_ = 0;
  std::string numerics_id_;
};

}  // namespace qserve::router
