// See report.h.
#include "quantizer/evaluate/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace qserve::quantizer {
namespace {

size_t WidestName(const Evaluation& evaluation) {
  size_t width = 7;
  for (const EvalRow& row : evaluation.rows) width = std::max(width, row.setting.name.size());
  return width;
}

std::string LayerTable(const Evaluation& evaluation) {
  std::string text = fmt::format("\nsignal to error by layer, {} against full precision{} (dB)\n",
                                 evaluation.layers_setting,
                                 evaluation.layers_aligned ? ", up to rotation and smoothing" : "");
  text += "layer";
  for (const LayerError& error : evaluation.layers) {
    if (error.layer == 0) text += fmt::format(" {:>9}", error.what);
  }
  int64_t layer = -1;
  for (const LayerError& error : evaluation.layers) {
    if (error.layer != layer) text += fmt::format("\n{:>5}", layer = error.layer);
    text += fmt::format(" {:>9.2f}", error.snr_db);
  }
  return text + "\n";
}

}  // namespace

std::string TextReport(const Evaluation& evaluation) {
  std::string text = fmt::format("{} windows of {} tokens, one every {}\n", evaluation.windows,
                                 evaluation.sequence_length, evaluation.stride);
  const size_t width = WidestName(evaluation);
  text += fmt::format("{:<{}}  {:>5}  {:>10}  {:>8}  {:>8}  {:>7}  {:>7}  source\n", "setting",
                      width, "head", "perplexity", "change", "+/-", "KL", "hits");
  for (size_t i = 0; i < evaluation.rows.size(); ++i) {
    const EvalRow& row = evaluation.rows[i];
    const std::string change = i == 0 ? "" : fmt::format("{:+.2f} %", row.delta_percent);
    const std::string error = i == 0 ? "" : fmt::format("{:.2f} %", row.delta_error_percent);
    const std::string kl = row.divergence ? fmt::format("{:.5f}", *row.divergence) : "";
    text += fmt::format("{:<{}}  {:>5}  {:>10.4f}  {:>8}  {:>8}  {:>7}  {:>5.2f} %  {}\n",
                        row.setting.name, width, row.head, row.perplexity, change, error, kl,
                        100 * row.hit_rate, row.source);
  }
  if (!evaluation.layers_reason.empty())
    text += fmt::format("\nno report by layers: {}\n", evaluation.layers_reason);
  if (!evaluation.layers.empty()) text += LayerTable(evaluation);
  return text;
}

std::string PlotTitle(const std::string& model, const Evaluation& evaluation) {
  std::string title =
      fmt::format("{}: {} against full precision", model, evaluation.layers_setting);
  for (const EvalRow& row : evaluation.rows) {
    if (row.setting.name == evaluation.layers_setting && row.divergence)
      title += fmt::format(", KL {:.4f}", *row.divergence);
  }
  return title;
}

std::string JsonReport(const Evaluation& evaluation) {
  nlohmann::ordered_json json = {{"windows", evaluation.windows},
                                 {"sequence_length", evaluation.sequence_length},
                                 {"stride", evaluation.stride},
                                 {"rows", nlohmann::ordered_json::array()}};
  for (const EvalRow& row : evaluation.rows) {
    json["rows"].push_back({{"setting", row.setting.name},
                            {"source", row.source},
                            {"lm_head", row.head},
                            {"tokens", row.tokens},
                            {"mean_negative_log_likelihood", row.mean},
                            {"perplexity", row.perplexity},
                            {"hit_rate", row.hit_rate},
                            {"change_percent", row.delta_percent},
                            {"change_standard_error_percent", row.delta_error_percent}});
    if (!row.divergence) continue;
    json["rows"].back()["kl_divergence"] = *row.divergence;
    json["rows"].back()["kl_standard_error"] = row.divergence_error;
  }
  if (!evaluation.layers.empty()) {
    json["layers_setting"] = evaluation.layers_setting;
    json["layers_aligned"] = evaluation.layers_aligned;
    json["layers"] = nlohmann::ordered_json::array();
    for (const LayerError& error : evaluation.layers) {
      nlohmann::ordered_json entry = {{"layer", error.layer}, {"what", error.what}};
      entry["snr_db"] = std::isfinite(error.snr_db) ? nlohmann::ordered_json(error.snr_db)
                                                    : nlohmann::ordered_json();
      json["layers"].push_back(std::move(entry));
    }
  }
  if (!evaluation.layers_reason.empty()) json["layers_reason"] = evaluation.layers_reason;
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace qserve::quantizer
