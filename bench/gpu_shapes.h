// The shapes that the GPU benchmark works on: one decoder layer of Llama-3-8B and 70B, as fused
// linears. Constant data.
#pragma once

#include <array>
#include <cstdint>

namespace qserve::bench {

struct GpuShape {
  const char* name = "";
  int layers = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 128;
  int64_t vocabulary = 128'256;

  int64_t qkv() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  int64_t attention() const { return int64_t{heads} * head_dim; }
  // Weights of a layer's linears.
  int64_t layer_weights() const { return hidden * (qkv() + attention() + 3 * intermediate); }
};

inline constexpr std::array<GpuShape, 2> kGpuShapes = {{
    {"llama-3-8b", 32, 4096, 14336, 32, 8},
    {"llama-3-70b", 80, 8192, 28672, 64, 8},
}};

}  // namespace qserve::bench
