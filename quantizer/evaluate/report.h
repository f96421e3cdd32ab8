// An evaluation as text for people and as JSON for programs. Called by eval_command.cc; pure.
#pragma once

#include <string>

#include "quantizer/evaluate/evaluation.h"

namespace qserve::quantizer {

// The table of settings, then that of the layers, a line each.
std::string TextReport(const Evaluation& evaluation);

// Of the plot: what its layers are of, and what that setting cost as a whole.
std::string PlotTitle(const std::string& model, const Evaluation& evaluation);

// The same figures, unrounded; ends with a newline. An infinite ratio is null, a
// divergence without a reference absent.
std::string JsonReport(const Evaluation& evaluation);

}  // namespace qserve::quantizer
