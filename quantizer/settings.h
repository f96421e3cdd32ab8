// Every switch of quantization: what a recipe presets and a flag or a line of a configuration file
// changes. Plain data; made by quantize_command.cc and tests, read by the pipeline.
#pragma once

#include <cstdint>

#include "quantizer/calibration/windows.h"
#include "quantizer/solve/solve_options.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer {

// Changes of the weights that make up for what is rounded already.
struct CorrectionOptions {
  // Of the difference that earlier rounding made to a linear's inputs: 1 corrects what its weights
  // can, 0 nothing.
  double inputs = 1;
  // Likewise of the difference in the residual stream that o_proj and down_proj add to.
  double residual = 1;
  double damping = 0.01;  // of the mean moment
  bool head = true;       // lm_head as well
};

struct Settings {
  transform::TransformOptions transform;
  solve::SolveOptions solve;
  CorrectionOptions correction;
  bool int8_inputs = true;  // moments are taken of inputs as rounded to int8
  int kv_bits = 4;
  int lm_head_bits = 0;  // recorded in the checkpoint; 0: nothing is recorded

  calibration::WindowOptions windows;
};

// Whether anything in it needs calibration text.
bool NeedsCalibration(const Settings& settings);

}  // namespace qserve::quantizer
