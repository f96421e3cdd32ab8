// Rotary position tables: the cosines and sines that RopeAppend reads, for every kind of scaling
// that the supported models use. Built once at load by worker/model (and by the quantizer's
// simulation). No state, any thread.
//
// Formulas: Su et al., "RoFormer"; position interpolation (linear); Llama 3.1's wavelength blend;
// Peng et al., "YaRN", all as transformers' modeling_rope_utils.py computes them. Frequencies are
// rounded to fp32, as there; angles are then exact in double, where transformers rounds them to
// fp32. Only IEEE additions, multiplications and divisions are used (own exp, log, sin, cos in
// double, errors below 1e-15), so that a table has the same bits whatever the C library.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/status.h"

namespace qserve::kernels {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

// Names as in config.json. Fields that a type does not use are ignored.
struct RopeSpec {
  RopeType type = RopeType::kDefault;
  int head_dim = 0;
  double theta = 10000;
  double factor = 1;                             // linear, llama3, yarn
  double low_freq_factor = 1;                    // llama3
  double high_freq_factor = 4;                   // llama3
  int64_t original_max_position_embeddings = 0;  // llama3, yarn
  double beta_fast = 32;                         // yarn
  double beta_slow = 1;                          // yarn
  double mscale = 0;                             // yarn; 0: not given
  double mscale_all_dim = 0;                     // yarn; 0: not given
  std::optional<double> attention_factor;        // yarn; multiplies cosines and sines
  bool truncate = true;                          // yarn: the blend's ends are whole channels
};

// head_dim / 2 inverse frequencies in fp32, and the factor that the table is multiplied by.
// InvalidArgument for a spec that has no table (odd head_dim, theta <= 1, factor < 1, missing
// original length, ...).
StatusOr<std::vector<float>> RopeFrequencies(const RopeSpec& spec);
double RopeAttentionFactor(const RopeSpec& spec);

// [positions, head_dim]: per position head_dim / 2 cosines, then as many sines. At most 2^20 * 16
// positions.
StatusOr<std::vector<float>> BuildRopeTable(const RopeSpec& spec, int64_t positions);

}  // namespace qserve::kernels
