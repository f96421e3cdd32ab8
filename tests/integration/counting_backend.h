// A backend that notes what is asked of another one: shows that a step really is one batch. Test
// programs only.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "kernels/forwarding_backend.h"

namespace qserve::tests {

class CountingBackend final : public kernels::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // Rows (M) of every Linear since the last Clear, by its weight, in order.
  std::map<const kernels::PackedLinear*, std::vector<int64_t>> linears;
  int64_t embeds = 0, norms = 0, ropes = 0, attentions = 0, samples = 0;
  void Clear() {
    linears.clear();
    embeds = norms = ropes = attentions = samples = 0;
  }

  void Embed(const kernels::EmbedArgs& args) override {
    ++embeds;
    ForwardingBackend::Embed(args);
  }
  void Norm(const kernels::NormArgs& args) override {
    ++norms;
    ForwardingBackend::Norm(args);
  }
  void Linear(const kernels::LinearArgs& args) override {
    linears[args.weight].push_back(args.x.rows);
    ForwardingBackend::Linear(args);
  }
  void RopeAppend(const kernels::RopeAppendArgs& args) override {
    ++ropes;
    ForwardingBackend::RopeAppend(args);
  }
  void Attention(const kernels::AttentionArgs& args) override {
    ++attentions;
    ForwardingBackend::Attention(args);
  }
  void Sample(const kernels::SampleArgs& args) override {
    ++samples;
    ForwardingBackend::Sample(args);
  }
};

}  // namespace qserve::tests
