// A model made ready for one setting: checkpoint or simulation of one, backend, runner. Made by
// evaluation.cc for each row of the table and for the report by layers; one thread at a time.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quantizer/evaluate/setting.h"
#include "quantizer/evaluate/simulated_checkpoint.h"
#include "quantizer/evaluate/tapped_backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/comm/communicator.h"
#include "worker/exec/direct_runner.h"

namespace qserve::quantizer {

struct TrialOptions {
  int64_t max_tokens = 0;  // of a sequence
  int threads = 1;
  std::string device = "cpu";  // "served" only; simulations run on the CPU
  // What the worker's flags of these names mean for "served". Simulations take `lm_head` too, auto
  // being floating point, and 4-bit weights from `quantize` where the directory has none.
  worker::exec::KvCacheType kv_cache = worker::exec::KvCacheType::kAuto;
  worker::model::LmHeadType lm_head = worker::model::LmHeadType::kAuto;
  worker::checkpoint::LoadQuantization quantize = worker::checkpoint::LoadQuantization::kNone;
};

// A method that scales the input channels of linears before rounding (comparison rows).
struct Smoothing {
  SimulatedCheckpoint::LinearSource linears;           // rounded weights, scaled back
  std::map<LinearPlace, std::vector<float>> divisors;  // of inputs, where activations are rounded
};

class Trial {
 public:
  // `source` must outlive the trial and fit the setting: full-precision weights for w16 and w8,
  // 4-bit ones or `quantize` for w4. `smoothing` (may be null) replaces the setting's weights.
  // `observer` may be null. Errors: those of loading; InvalidArgument for a setting that `source`
  // cannot have.
  static absl::StatusOr<std::unique_ptr<Trial>> Create(
      const worker::checkpoint::Checkpoint& source, const Setting& setting,
      const TrialOptions& options, const Smoothing* smoothing = nullptr,
      worker::model::ActivationObserver* observer = nullptr);

  worker::exec::DirectRunner& runner() { return *runner_; }
  TappedBackend& backend() { return *tap_; }
  // What the head is multiplied as: "float" (as stored), "fp16", "int8", "int4".
  std::string head() const;
  const std::vector<kernels::KvFormat>& kv_formats() const { return kv_formats_; }

 private:
  Trial() = default;
  absl::Status Load(const worker::checkpoint::Checkpoint& checkpoint, const TrialOptions& options,
                    worker::exec::DirectRunnerOptions runner);

  std::unique_ptr<SimulatedCheckpoint> simulated_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<TappedBackend> tap_;
  std::unique_ptr<worker::comm::Communicator> communicator_;
  std::unique_ptr<worker::exec::DirectRunner> runner_;
  std::vector<kernels::KvFormat> kv_formats_;
};

}  // namespace qserve::quantizer
