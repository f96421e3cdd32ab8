// Random weights as a pure function of (tensor name, element, seed), the same in C++ and in Python
// (tests/golden/models/ random_weights.py): so that a test model needs no file, and logits computed
// elsewhere can be compared. Used by the makers of test and benchmark models; thread-safe.
//
//   bits    = Philox4x32-10(counter = {(i / 4) mod 2^32, (i / 4) / 2^32, Fnv1a32(name), 0}, key =
//   {seed, 0})[i mod 4] u(i)    = (bits >> 8) * 2^-23 - 1, in [-1, 1), exact in fp32 value   =
//   offset + scale * u(i), in fp32, each operation rounded once (no fused multiply-add)
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "worker/checkpoint/model_layout.h"

namespace qserve::worker::checkpoint {

// 32-bit FNV-1a of the bytes of `text`.
constexpr uint32_t Fnv1a32(std::string_view text) {
  uint32_t hash = 0x811c9dc5u;
  for (const char character : text) hash = (hash ^ static_cast<uint8_t>(character)) * 0x01000193u;
  return hash;
}

struct RandomRange {
  float scale = 1.0f;
  float offset = 0.0f;
};

// What keeps activations of a random model of any size near one: embeddings +-1; weights [n][k]
// +-sqrt(3 / k) (variance 1 / k; the square root in double, then rounded to fp32), lm_head
// likewise; biases +-0.5; norm gains 1 +-0.1.
RandomRange RangeOf(const TensorSpec& tensor);

// Elements [begin, begin + out.size()) of the tensor `name` in row-major order.
void FillRandom(std::string_view name, uint32_t seed, RandomRange range, int64_t begin,
                std::span<float> out);

// 16 * blocks random bytes: the little-endian words of Philox blocks begin_block, begin_block + 1,
// ... of the tensor `name`.
void FillRandomBytes(std::string_view name, uint32_t seed, int64_t begin_block,
                     std::span<uint8_t> out);

}  // namespace qserve::worker::checkpoint
