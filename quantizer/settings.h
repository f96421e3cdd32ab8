// Every switch of quantization: what a recipe presets and a flag or a line of a configuration file
// changes. Plain data; made by quantize_command.cc and tests, read by the pipeline.
#pragma once

#include <cstdint>

#include "quantizer/calibration/windows.h"
#include "quantizer/solve/solve_options.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer {

// Clipping of q_proj and k_proj by the error of the attention output, for each kv head.
struct ClipAttentionOptions {
  bool enabled = false;
  int64_t windows = 4;          // of the calibration text, that it looks at
  double smallest_ratio = 0.7;  // of a row's or group's range, down from 1
  int steps = 6;
};

struct Settings {
  transform::TransformOptions transform;
  solve::SolveOptions solve;
  // Weights changed to make up for what earlier rounding did to a linear's inputs: 1 corrects what
  // they can, 0 nothing.
  double correct_inputs = 1;
  double correction_damping = 0.01;  // of the mean moment
  ClipAttentionOptions clip_attention;
  bool int8_inputs = true;  // moments are taken of inputs as rounded to int8
  int kv_bits = 4;
  int lm_head_bits = 8;  // recorded in the checkpoint

  calibration::WindowOptions windows;
};

// Whether anything in it needs calibration text.
bool NeedsCalibration(const Settings& settings);

}  // namespace qserve::quantizer
