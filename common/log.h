// Logging: LOG_INFO("ready in {:.1f} s", seconds). fmt syntax, checked at compile time. Text or one
// JSON object a line; to stderr. Never log prompts, generated text, keys or secrets. Thread-safe.
#pragma once

#include <string_view>

#include <spdlog/spdlog.h>

#include "absl/status/status.h"

namespace qserve {

// level: debug | info | warn | error; format: text | json. `name` (for example "worker rank 1")
// stands in every line. Called once at the start of main, before threads.
absl::Status InitLogging(std::string_view name, std::string_view level, std::string_view format);

}  // namespace qserve

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
