// The demo model on the emulated GPU finds held-out text as likely as on the CPU: narrower
// activations and another order of sums move logits, but must not cost accuracy.
#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/local_communicator.h"
#include "worker/exec/direct_runner.h"
#include "worker/text/tokenizer.h"

namespace qserve::tests {
namespace {

using kernels::FloatType;
using kernels::cuda::CudaBackend;
using worker::checkpoint::Checkpoint;
using worker::checkpoint::LoadQuantization;
using worker::exec::DirectRunner;
using worker::exec::KvCacheType;

constexpr const char* kModel = "deploy/demo-model";
constexpr size_t kTokens = 192;

std::unique_ptr<kernels::Backend> MakeGpu(FloatType activations) {
  kernels::cuda::CudaBackendOptions options;
  options.activation_type = activations;
  options.memory.block_bytes = 0;
  options.memory.headroom_bytes = int64_t{1} << 20;
  auto backend =
      CudaBackend::Create(std::make_unique<kernels::cuda::EmulatedRuntime>(
                              kernels::cuda::EmulatedDevice{.memory_bytes = int64_t{128} << 20}),
                          options);
  QSERVE_CHECK_MSG(backend.ok(), backend.status().message());
  return *std::move(backend);
}

std::vector<int32_t> HeldOutTokens() {
  const auto tokenizer = worker::text::Tokenizer::Load(kModel);
  QSERVE_CHECK_MSG(tokenizer.ok(), tokenizer.status().ToString());
  std::ifstream file(std::string(kModel) + "/heldout.txt");
  std::string text(16384, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  auto ids = (*tokenizer)->Encode(text);
  QSERVE_CHECK_MSG(ids.ok(), ids.status().ToString());
  QSERVE_CHECK(ids->size() > kTokens);
  ids->resize(kTokens);
  return *std::move(ids);
}

// Mean negative log-likelihood of every token but the first, in nats.
double MeanSurprise(kernels::Backend& backend, LoadQuantization scheme,
                    const std::vector<int32_t>& ids) {
  worker::comm::LocalCommunicator alone(&backend);
  const auto checkpoint = Checkpoint::Open(kModel);
  QSERVE_CHECK_MSG(checkpoint.ok(), checkpoint.status().ToString());
  const auto runner = DirectRunner::Create(
      **checkpoint, backend, alone,
      {.max_tokens = kTokens, .kv_cache = KvCacheType::kInt4, .weights = {.quantization = scheme}});
  QSERVE_CHECK_MSG(runner.ok(), runner.status().ToString());
  const auto logits = (*runner)->Logits(ids);
  QSERVE_CHECK_MSG(logits.ok(), logits.status().ToString());
  const size_t vocabulary = logits->size() / ids.size();
  double total = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const float* row = logits->data() + i * vocabulary;
    double sum = 0;
    for (size_t v = 0; v < vocabulary; ++v) sum += std::exp(static_cast<double>(row[v]));
    total += std::log(sum) - static_cast<double>(row[ids[i + 1]]);
  }
  return total / static_cast<double>(ids.size() - 1);
}

// The same bound holds either way: what one rounds worse the other rounds better elsewhere.
TEST(CudaText, IsAsLikelyAsOnTheCpu) {
  const std::vector<int32_t> ids = HeldOutTokens();
  for (const auto& [scheme, activations] :
       {std::pair(LoadQuantization::kRtnGroup128, FloatType::kF16),
        std::pair(LoadQuantization::kRtnPerChannel, FloatType::kBf16)}) {
    const double cpu = MeanSurprise(*MakeCpu(), scheme, ids);
    EXPECT_LT(cpu, 5.0) << "ln(4096) is 8.3: the model would know next to nothing";
    EXPECT_NEAR(MeanSurprise(*MakeGpu(activations), scheme, ids), cpu, 0.02);
  }
}

}  // namespace
}  // namespace qserve::tests
