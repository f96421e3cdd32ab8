// The report by layers as a picture: one line a signal over the layers, in the SVG that browsers
// show. Called by eval_command.cc; pure.
#pragma once

#include <string>
#include <vector>

#include "quantizer/evaluate/layer_report.h"

namespace qserve::quantizer {

// Ratios in dB over the layers; infinite ones are left out. `title` stands above.
std::string LayerPlot(const std::vector<LayerError>& errors, const std::string& title);

}  // namespace qserve::quantizer
