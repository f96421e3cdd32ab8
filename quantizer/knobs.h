// Every switch of Settings by name and text: what gives each a flag, an environment variable and a
// key of the configuration file, and tells two settings apart. Constant data; used by
// quantize_command.cc, layer_store.cc and tests.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "quantizer/settings.h"

namespace qserve::quantizer {

struct Knob {
  const char* name;  // of the flag, without dashes
  const char* help;
  // False if the text is no value of it.
  bool (*set)(Settings& settings, std::string_view text);
  std::string (*get)(const Settings& settings);
};

std::span<const Knob> Knobs();

// InvalidArgument for an unknown name or a value that it does not have.
absl::Status SetKnob(std::string_view name, std::string_view text, Settings& settings);

// "name=value" of all of them and the scheme, a line each.
std::string Describe(const Settings& settings);

}  // namespace qserve::quantizer
