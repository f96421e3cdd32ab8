// What decides a replica's tokens besides the request: two replicas with the same id give the same
// tokens to the bit, and the router continues a stream only on such a one.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/types.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::worker::exec {

struct Numerics {
  uint64_t checkpoint_digest = 0;
  int tensor_parallel_size = 1;
  std::string kernel_family;
  kernels::WeightFormat lm_head = kernels::WeightFormat::kFloat;
  std::span<const kernels::KvFormat> kv_formats;
  checkpoint::LoadQuantization quantization = checkpoint::LoadQuantization::kNone;
};

// 16 hexadecimal digits.
std::string NumericsId(const Numerics& numerics);

}  // namespace qserve::worker::exec
