// How one linear is rounded to 4 bits: the switches of every step. Plain data.
#pragma once

#include <cstdint>

#include "worker/checkpoint/model_config.h"

namespace qserve::quantizer::solve {

struct SolveOptions {
  worker::checkpoint::Scheme scheme = worker::checkpoint::Scheme::kQoqGroup128;

  // Scales and zeros. Off: those of round to nearest (kernels/quant/rtn.h).
  bool clip_search = true;
  double smallest_ratio = 0.6;  // of the range that is kept
  int ratios = 20;
  // Part of the range that every group keeps, for choosing it by something else than the inputs'
  // moments; 0: searched for.
  double fixed_ratio = 0;
  bool free_zero = true;  // zeros need not be multiples of the group's scale

  bool gptq = true;
  double damping = 0.01;  // of the mean diagonal, added to the diagonal
  int sweeps = 3;         // of coordinate descent behind it, each with scales fitted again
  int threads = 1;
};

}  // namespace qserve::quantizer::solve
