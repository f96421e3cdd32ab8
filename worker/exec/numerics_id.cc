#include "worker/exec/numerics_id.h"

#include <fmt/format.h>

#include "common/hashing.h"

namespace qserve::worker::exec {
namespace {

// Counts up with every change of a formula or an order of sums that can change a token.
constexpr int kArithmeticVersion = 1;

}  // namespace

std::string NumericsId(const Numerics& numerics) {
  std::string text =
      fmt::format("{}|{:016x}|{}|{}|{}|{}|", kArithmeticVersion, numerics.checkpoint_digest,
                  numerics.tensor_parallel_size, numerics.kernel_family,
                  static_cast<int>(numerics.lm_head), static_cast<int>(numerics.quantization));
  for (const kernels::KvFormat format : numerics.kv_formats)
    text += static_cast<char>('0' + static_cast<int>(format));
  return HexDigest(HashSpan(std::span<const char>(text)));
}

}  // namespace qserve::worker::exec
