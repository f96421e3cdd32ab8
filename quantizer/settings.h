// Every switch of quantization: what a recipe presets and a flag or a line of a configuration file
// changes. Plain data; made by quantize_command.cc and tests, read by the pipeline.
#pragma once

#include <cstdint>

#include "quantizer/calibration/windows.h"
#include "quantizer/solve/solve_options.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer {

struct Settings {
  transform::TransformOptions transform;
  solve::SolveOptions solve;
  // Weights changed to make up for what earlier rounding did to a linear's inputs: 1 corrects what
  // they can, 0 nothing.
  double correct_inputs = 1;
  double correction_damping = 0.01;  // of the mean moment
  bool int8_inputs = true;           // moments are taken of inputs as rounded to int8
  int kv_bits = 4;
  int lm_head_bits = 8;  // recorded in the checkpoint

  calibration::WindowOptions windows;
};

// Whether anything in it needs calibration text.
bool NeedsCalibration(const Settings& settings);

}  // namespace qserve::quantizer
