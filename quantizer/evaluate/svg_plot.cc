// See svg_plot.h.
#include "quantizer/evaluate/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

namespace qserve::quantizer {
namespace {

constexpr double kWidth = 760, kHeight = 420;
constexpr double kLeft = 60, kRight = 640, kTop = 50, kBottom = 370;  // the axes; a legend beside
constexpr double kLegendX = 658, kLegendStep = 22;
constexpr int kMostTicks = 12;

// Told apart by those who see no red and green, too: every second line is dashed.
constexpr std::array<const char*, 9> kColours = {"#0072b2", "#56b4e9", "#009e73",
                                                 "#d55e00", "#e69f00", "#cc79a7",
                                                 "#000000", "#7f7f7f", "#8c564b"};

std::string Escape(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '<') {
      escaped += "&lt;";
    } else if (c == '&') {
      escaped += "&amp;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

struct Axes {
  int64_t last_layer = 0;
  double low = 0, high = 1, step = 1;  // dB

  double X(int64_t layer) const {
    const double share =
        last_layer == 0 ? 0.5 : static_cast<double>(layer) / static_cast<double>(last_layer);
    return kLeft + (kRight - kLeft) * share;
  }
  double Y(double db) const { return kBottom - (kBottom - kTop) * (db - low) / (high - low); }
};

Axes AxesOf(const std::vector<LayerError>& errors) {
  Axes axes;
  double low = INFINITY, high = -INFINITY;
  for (const LayerError& error : errors) {
    axes.last_layer = std::max(axes.last_layer, error.layer);
    if (!std::isfinite(error.snr_db)) continue;
    low = std::min(low, error.snr_db);
    high = std::max(high, error.snr_db);
  }
  if (low > high) low = 0, high = 1;
  for (const double step : {1.0, 2.0, 5.0, 10.0, 20.0, 50.0}) {
    axes.step = step;
    if ((high - low) / step <= kMostTicks - 2) break;
  }
  axes.low = std::floor(low / axes.step) * axes.step;
  axes.high = std::max(std::ceil(high / axes.step) * axes.step, axes.low + axes.step);
  return axes;
}

std::string Text(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     Escape(text));
}

std::string Grid(const Axes& axes) {
  std::string svg;
  for (double db = axes.low; db <= axes.high + axes.step / 2; db += axes.step) {
    svg += fmt::format(
        "<line x1=\"{0}\" y1=\"{2:.1f}\" x2=\"{1}\" y2=\"{2:.1f}\" stroke=\"#dddddd\"/>\n", kLeft,
        kRight, axes.Y(db));
    svg += Text(kLeft - 8, axes.Y(db) + 4, "end", fmt::format("{:g}", db));
  }
  const int64_t every = axes.last_layer / kMostTicks + 1;
  for (int64_t layer = 0; layer <= axes.last_layer; layer += every)
    svg += Text(axes.X(layer), kBottom + 18, "middle", std::to_string(layer));
  svg += Text((kLeft + kRight) / 2, kBottom + 38, "middle", "layer");
  svg += fmt::format("<text transform=\"translate(18,{}) rotate(-90)\" text-anchor=\"middle\">",
                     (kTop + kBottom) / 2);
  svg += "signal to error (dB)</text>\n";
  return svg;
}

std::string Line(const Axes& axes, const std::vector<const LayerError*>& points, size_t index,
                 const std::string& name) {
  const char* colour = kColours[index % kColours.size()];
  const char* dash = index % 2 == 1 ? " stroke-dasharray=\"6 3\"" : "";
  std::string line, dots;
  for (const LayerError* point : points) {
    if (!std::isfinite(point->snr_db)) continue;
    const double x = axes.X(point->layer), y = axes.Y(point->snr_db);
    line += fmt::format("{}{:.1f},{:.1f}", line.empty() ? "" : " ", x, y);
    dots +=
        fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x, y, colour);
  }
  const double y = kTop + 8 + kLegendStep * static_cast<double>(index);
  std::string svg =
      fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{}/>\n",
                  line, colour, dash);
  svg += dots;
  svg += fmt::format(
      "<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"1.8\"{}/>\n",
      kLegendX, y, kLegendX + 22, y, colour, dash);
  return svg + Text(kLegendX + 28, y + 4, "start", name);
}

}  // namespace

std::string LayerPlot(const std::vector<LayerError>& errors, const std::string& title) {
  const Axes axes = AxesOf(errors);
  std::vector<std::string> names;
  std::map<std::string, std::vector<const LayerError*>> lines;
  for (const LayerError& error : errors) {
    if (!lines.contains(error.what)) names.push_back(error.what);
    lines[error.what].push_back(&error);
  }
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, kHeight);
  svg += fmt::format("<text x=\"{}\" y=\"26\" font-size=\"15\">{}</text>\n", kLeft, Escape(title));
  svg += Grid(axes);
  for (size_t i = 0; i < names.size(); ++i) svg += Line(axes, lines[names[i]], i, names[i]);
  return svg + "</svg>\n";
}

}  // namespace qserve::quantizer
