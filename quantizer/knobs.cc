// See knobs.h.
#include "quantizer/knobs.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace qserve::quantizer {
namespace {

using transform::ValueTransform;

template <class T>
bool ReadNumber(std::string_view text, T smallest, T largest, T& value) {
  T read{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), read);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  if (!(read >= smallest && read <= largest)) return false;
  value = read;
  return true;
}

bool Read(std::string_view text, bool& value) {
  if (text != "true" && text != "false" && text != "on" && text != "off") return false;
  value = text == "true" || text == "on";
  return true;
}
bool Read(std::string_view text, double& value) { return ReadNumber(text, 0.0, 100.0, value); }
bool Read(std::string_view text, int& value) { return ReadNumber(text, 0, 1 << 20, value); }
bool Read(std::string_view text, int64_t& value) {
  return ReadNumber(text, int64_t{1}, int64_t{1} << 40, value);
}
bool Read(std::string_view text, uint64_t& value) {
  return ReadNumber(text, uint64_t{0}, ~uint64_t{0}, value);
}
bool Read(std::string_view text, ValueTransform& value) {
  if (text == "none") value = ValueTransform::kNone;
  if (text == "hadamard") value = ValueTransform::kHadamard;
  if (text == "balanced") value = ValueTransform::kBalanced;
  return text == "none" || text == "hadamard" || text == "balanced";
}

std::string Write(bool value) { return value ? "on" : "off"; }
std::string Write(double value) { return fmt::format("{}", value); }
std::string Write(int value) { return fmt::format("{}", value); }
std::string Write(int64_t value) { return fmt::format("{}", value); }
std::string Write(uint64_t value) { return fmt::format("{}", value); }
std::string Write(ValueTransform value) {
  return value == ValueTransform::kNone       ? "none"
         : value == ValueTransform::kHadamard ? "hadamard"
                                              : "balanced";
}

bool SetBits(std::string_view text, int& bits) {
  if (text != "4" && text != "8" && text != "16") return false;
  bits = text == "4" ? 4 : text == "8" ? 8 : 16;
  return true;
}

// A row of the table: the name, the member and its help.
#define KNOB(name, member, help)                                                        \
  {name, help, [](Settings& s, std::string_view text) { return Read(text, s.member); }, \
   [](const Settings& s) { return Write(s.member); }}

constexpr Knob kKnobs[] = {
    KNOB("rotation", transform.rotate, "Turn the residual stream by a Hadamard matrix: on, off"),
    KNOB("rotation-seed", transform.rotation_seed, "Of the matrix's random signs; 0: no signs"),
    KNOB("value-transform", transform.values,
         "Of the value heads, undone in o_proj: none, hadamard, balanced"),
    KNOB("smooth-attention", transform.attention.enabled,
         "Scale keys against queries (SmoothAttention)"),
    KNOB("smooth-attention-search", transform.attention.search,
         "Choose its alpha for each head by the error of the attention output"),
    KNOB("smooth-attention-alpha", transform.attention.alpha, "Where it is not searched for"),
    KNOB("smooth-attention-beta", transform.attention.beta, "Likewise"),
    KNOB("smooth-attention-steps", transform.attention.steps, "Of alpha between 0 and 1"),
    KNOB("smooth-attention-windows", transform.attention.windows, "That the search looks at"),
    KNOB("smooth-o", transform.o_proj.enabled, "Scale values against o_proj"),
    KNOB("smooth-o-search", transform.o_proj.search,
         "Only in blocks where it saves errors, exponents searched for"),
    KNOB("smooth-o-alpha", transform.o_proj.alpha,
         "Exponent of the largest input, not searched for"),
    KNOB("smooth-o-beta", transform.o_proj.beta, "Exponent of the largest weight"),
    KNOB("smooth-down", transform.down_proj.enabled, "Scale up_proj against down_proj"),
    KNOB("smooth-down-search", transform.down_proj.search,
         "Only in blocks where it saves errors, exponents searched for"),
    KNOB("smooth-down-alpha", transform.down_proj.alpha,
         "Exponent of the largest input, not searched for"),
    KNOB("smooth-down-beta", transform.down_proj.beta, "Exponent of the largest weight"),
    KNOB("reorder", transform.reorder,
         "Sort the input channels of o_proj and down_proj by magnitude"),
    KNOB("clip-search", solve.clip_search, "Search scales and zeros instead of covering the range"),
    KNOB("clip-smallest-ratio", solve.smallest_ratio, "Of the range that the search may keep"),
    KNOB("clip-steps", solve.ratios, "Ratios that it tries"),
    KNOB("clip-attention", clip_attention.enabled,
         "Clip q_proj and k_proj by the error of the attention output"),
    KNOB("clip-attention-windows", clip_attention.windows, "That it looks at"),
    KNOB("clip-attention-smallest-ratio", clip_attention.smallest_ratio, "Of the range it tries"),
    KNOB("clip-attention-steps", clip_attention.steps, "Of ratios between 1 and that"),
    KNOB("free-zero", solve.free_zero,
         "Let zeros be what the format stores, not multiples of the scale"),
    KNOB("gptq", solve.gptq, "Round by GPTQ instead of to nearest"),
    KNOB("gptq-damping", solve.damping, "Of the mean moment, added to the diagonal"),
    KNOB("gptq-sweeps", solve.sweeps, "Of coordinate descent behind it"),
    KNOB("correction", correct_inputs,
         "How much of what earlier rounding did to its inputs a linear makes up for, 0 to 1"),
    KNOB("correction-damping", correction_damping, "Of the mean moment"),
    KNOB("int8-inputs", int8_inputs, "Calibrate on inputs as rounded to int8"),
    KNOB("calibration-samples", windows.samples, "Windows of calibration text, at most"),
    KNOB("calibration-length", windows.length, "Tokens of each"),
    KNOB("seed", windows.seed, "Of the choice of windows"),
    {"kv-bits", "Bits of stored keys and values, calibrated for and recorded: 4, 8, 16",
     [](Settings& s, std::string_view text) { return SetBits(text, s.kv_bits); },
     [](const Settings& s) { return Write(s.kv_bits); }},
    {"lm-head-bits", "Recorded for serving: 16, 8, 4 (stored as fp16 in any case)",
     [](Settings& s, std::string_view text) { return SetBits(text, s.lm_head_bits); },
     [](const Settings& s) { return Write(s.lm_head_bits); }},
};

#undef KNOB

}  // namespace

std::span<const Knob> Knobs() { return kKnobs; }

absl::Status SetKnob(std::string_view name, std::string_view text, Settings& settings) {
  for (const Knob& knob : kKnobs) {
    if (name != knob.name) continue;
    if (knob.set(settings, text)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("\"{}\" is no value of --{} ({})", std::string(text), knob.name, knob.help));
  }
  return absl::InvalidArgumentError(fmt::format("there is no switch \"{}\"", std::string(name)));
}

std::string Describe(const Settings& settings) {
  std::string text = fmt::format("scheme={}\n", static_cast<int>(settings.solve.scheme));
  for (const Knob& knob : kKnobs) text += fmt::format("{}={}\n", knob.name, knob.get(settings));
  return text;
}

}  // namespace qserve::quantizer
