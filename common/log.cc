#include "common/log.h"

#include <memory>
#include <string>

#include <fmt/format.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <nlohmann/json.hpp>

namespace qserve {
namespace {

// One JSON object a line; the message is escaped by the JSON library, so that no text can forge a
// line.
class JsonFormatter final : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string name) : name_(std::move(name)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto since_epoch = message.time.time_since_epoch();
    const nlohmann::json line = {
        {"ts", std::chrono::duration<double>(since_epoch).count()},
        {"level", std::string(spdlog::level::to_string_view(message.level).data())},
        {"process", name_},
        {"message", std::string(message.payload.data(), message.payload.size())},
    };
    const std::string text =
        line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    out.append(text.data(), text.data() + text.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>(name_);
  }

 private:
  std::string name_;
};

}  // namespace

absl::Status InitLogging(std::string_view name, std::string_view level, std::string_view format) {
  spdlog::level::level_enum parsed = spdlog::level::info;
  if (level == "debug") {
    parsed = spdlog::level::debug;
  } else if (level == "info") {
    parsed = spdlog::level::info;
  } else if (level == "warn") {
    parsed = spdlog::level::warn;
  } else if (level == "error") {
    parsed = spdlog::level::err;
  } else {
    return absl::InvalidArgumentError(
        fmt::format("log level must be debug, info, warn or error, not '{}'", level));
  }
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError(
        fmt::format("log format must be text or json, not '{}'", format));
  }
  auto logger = std::make_shared<spdlog::logger>(
      std::string(name), std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_level(parsed);
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>(std::string(name)));
  } else {
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ [%n] %v");
  }
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

}  // namespace qserve
