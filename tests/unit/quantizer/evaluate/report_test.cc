// What eval prints: a table, JSON and a picture, from figures made up here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "quantizer/evaluate/report.h"
#include "quantizer/evaluate/svg_plot.h"

namespace qserve::quantizer {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Evaluation SomeEvaluation() {
  Evaluation evaluation = {.windows = 3, .sequence_length = 64, .stride = 32};
  evaluation.rows.push_back({.setting = *ParseSetting("w16a16kv16"),
                             .source = "a \"model\"",
                             .head = "float",
                             .tokens = 100,
                             .mean = 2.5,
                             .perplexity = 12.18249});
  evaluation.rows.push_back({.setting = *ParseSetting("served"),
                             .source = "b",
                             .head = "int8",
                             .tokens = 100,
                             .mean = 2.51,
                             .perplexity = 12.30492,
                             .delta_percent = 1.005,
                             .divergence = 0.0125,
                             .divergence_error = 0.001});
  evaluation.layers_setting = "served";
  evaluation.layers = {{0, "q_proj", std::numeric_limits<double>::infinity()},
                       {0, "key", 20.5},
                       {1, "q_proj", 17.25},
                       {1, "key", 18}};
  return evaluation;
}

TEST(Report, IsATable) {
  const std::string text = TextReport(SomeEvaluation());
  EXPECT_THAT(text, HasSubstr("3 windows of 64 tokens, one every 32"));
  EXPECT_THAT(text, HasSubstr("12.1825"));
  EXPECT_THAT(text, HasSubstr("+1.00 %"));
  EXPECT_THAT(text, HasSubstr("0.01250"));
  EXPECT_EQ(PlotTitle("m", SomeEvaluation()), "m: served against full precision, KL 0.0125");
  EXPECT_THAT(text, HasSubstr("    0       inf     20.50\n    1     17.25     18.00\n"));
}

TEST(Report, IsJson) {
  const nlohmann::json json = nlohmann::json::parse(JsonReport(SomeEvaluation()));
  EXPECT_EQ(json["rows"][0]["source"], "a \"model\"");
  EXPECT_EQ(json["rows"][1]["perplexity"], 12.30492);
  EXPECT_EQ(json["rows"][1]["change_percent"], 1.005);
  EXPECT_FALSE(json["rows"][0].contains("kl_divergence"));
  EXPECT_EQ(json["rows"][1]["kl_divergence"], 0.0125);
  EXPECT_EQ(json["rows"][1]["kl_standard_error"], 0.001);
  EXPECT_TRUE(json["layers"][0]["snr_db"].is_null());
  EXPECT_EQ(json["layers"][3]["snr_db"], 18.0);
}

TEST(Report, SaysWhyLayersAreMissing) {
  Evaluation evaluation = SomeEvaluation();
  evaluation.layers.clear();
  evaluation.layers_reason = "a reason";
  EXPECT_THAT(TextReport(evaluation), HasSubstr("no report by layers: a reason"));
  EXPECT_EQ(nlohmann::json::parse(JsonReport(evaluation))["layers_reason"], "a reason");
}

TEST(Plot, HasALineForEachSignal) {
  const std::string svg = LayerPlot(SomeEvaluation().layers, "a <model> & more");
  EXPECT_THAT(svg, HasSubstr("a &lt;model> &amp; more"));
  EXPECT_THAT(svg, HasSubstr(">q_proj</text>"));
  EXPECT_THAT(svg, HasSubstr(">key</text>"));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  // Highest at the top of the axes, lowest above the bottom: 17.25 to 20.5 dB on an axis 17 to 21.
  EXPECT_THAT(svg, HasSubstr("points=\"60.0,90.0 640.0,290.0\""));
}

TEST(Plot, BearsFewPoints) {
  for (const std::vector<LayerError>& errors :
       {std::vector<LayerError>{}, std::vector<LayerError>{{0, "q_proj", 20}},
        std::vector<LayerError>{{0, "q_proj", std::numeric_limits<double>::infinity()}}}) {
    const std::string svg = LayerPlot(errors, "");
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, HasSubstr("</svg>"));
  }
}

}  // namespace
}  // namespace qserve::quantizer
