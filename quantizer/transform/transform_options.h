// The changes of a model that leave its function as it is, and their switches. Plain data.
#pragma once

#include <cstdint>

namespace qserve::quantizer::transform {

// What is done to the value heads (rows of v_proj) and undone in o_proj's columns.
enum class ValueTransform {
  kNone,
  kHadamard,  // each head turned by a Hadamard matrix
  kBalanced,  // each head by the matrix that makes the 4-bit error of its values cost least
};

struct SmoothAttentionOptions {
  bool enabled = true;
  double alpha = 0.5;
  double beta = 0;
  // For each kv head the pair (alpha, 0) or (alpha, 1 - alpha) whose attention output errs least,
  // then the scales fitted to the ranges of its keys; alpha and beta above are then not used.
  bool search = false;
  int steps = 10;       // alphas 0, 1 / steps, ..., 1
  int64_t windows = 4;  // of the calibration text, for the search
};

struct SmoothOutputOptions {
  bool enabled = false;
  double alpha = 0.3;
  double beta = 0.7;
  // The pair (alpha, 0) or (alpha, 1 - alpha) with which the linear's output errs least, or no
  // smoothing where none saves much; alpha and beta above are then not used.
  bool search = false;
  int steps = 10;  // alphas 1 / steps, 2 / steps, ..., 1
};

struct TransformOptions {
  bool rotate = true;
  uint64_t rotation_seed = 0;  // 0: no random signs
  ValueTransform values = ValueTransform::kHadamard;
  SmoothAttentionOptions attention;
  SmoothOutputOptions o_proj;
  SmoothOutputOptions down_proj;
  bool reorder = false;  // input channels of o_proj and down_proj by magnitude
};

}  // namespace qserve::quantizer::transform
