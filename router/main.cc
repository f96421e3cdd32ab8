// qserve-router: balances gRPC requests over replicas.
#include <atomic>
#include <cstdlib>
#include <future>

#include "common/cli/options.h"
#include "common/log.h"
#include "common/shutdown.h"
#include "router/server.h"

namespace qserve::router {
namespace {

struct Flags {
  RouterOptions router;
  std::string metrics_listen = "127.0.0.1:9090";
  double drain_timeout = 30;
  std::string log_level = "info";
  std::string log_format = "text";
};

void Declare(cli::Options& options, Flags& flags) {
  options.Add("listen", flags.router.listen, "Address to serve gRPC on");
  options.Add("metrics-listen", flags.metrics_listen,
              "Address to serve Prometheus metrics on; empty: none");
  options.Add("workers", flags.router.workers, "Replica leaders, HOST:PORT, separated by commas")
      ->delimiter(',');
  options.Add("policy", flags.router.policy, "least-loaded, round-robin or random");
  options.Add("drain-timeout", flags.drain_timeout, "Seconds that open calls get after SIGTERM")
      ->check(CLI::NonNegativeNumber);
  options.Add("log-level", flags.log_level, "debug, info, warn or error");
  options.Add("log-format", flags.log_format, "text or json");
}

absl::Status Run(const Flags& flags) {
  std::promise<void> stop;
  const ShutdownSignal signals([&stop](int count) {
    if (count == 1) stop.set_value();
    if (count > 1) std::_Exit(1);  // the operator insists
  });
  Metrics metrics;
  if (!flags.metrics_listen.empty()) {
    if (const absl::Status status = metrics.Serve(flags.metrics_listen); !status.ok())
      return status;
  }
  const SteadyClock clock;
  auto router = Router::Start(flags.router, clock, metrics);
  if (!router.ok()) return router.status();
  LOG_INFO("serving on {} (port {}), {} replicas configured", flags.router.listen,
           (*router)->port(), flags.router.workers.size());
  stop.get_future().wait();
  LOG_INFO("draining");
  (*router)->DrainAndStop(
      std::chrono::duration_cast<Duration>(std::chrono::duration<double>(flags.drain_timeout)));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  cli::Options options("qserve-router", "Balances gRPC requests over replicas of language models");
  Declare(options, flags);
  if (const auto code = options.Parse(argc, argv)) return *code;
  absl::Status status = InitLogging("router", flags.log_level, flags.log_format);
  for (const std::string& variable : options.UnknownVariables())
    LOG_WARN("{} is not an option of this program", variable);
  if (status.ok()) status = Run(flags);
  if (status.ok()) return EXIT_SUCCESS;
  LOG_ERROR("{}", std::string(status.message()));
  return EXIT_FAILURE;
}

}  // namespace
}  // namespace qserve::router

int main(int argc, char** argv) { return qserve::router::Main(argc, argv); }
