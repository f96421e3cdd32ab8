// Which parts of a model are quantized in one measurement: a row of the table that `eval` prints.
// Named by flags, read by trial.cc; constant data.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::quantizer {

// Bits of 16 stand for floating point: weights as stored, fp32 activations, keys and values in
// fp32.
struct Setting {
  std::string name;          // "w4a8kv4", or "served"
  bool served = false;       // as a worker runs the directory: its own kernels and formats
  int weight_bits = 16;      // 16, 8, 4: 4 as the directory has them or --quantize makes them,
                             // 8 symmetric per row; read back into floating point
  int activation_bits = 16;  // 16 or 8: each row of a block linear's input rounded to int8
  int kv_bits = 16;          // 16, 8 or 4

  // Nothing is quantized.
  bool full_precision() const {
    return !served && weight_bits == 16 && activation_bits == 16 && kv_bits == 16;
  }
};

// "served" or w{16,8,4}a{16,8}kv{16,8,4}; InvalidArgument for anything else.
absl::StatusOr<Setting> ParseSetting(std::string_view name);

// Names separated by commas.
absl::StatusOr<std::vector<Setting>> ParseSettings(std::string_view names);

}  // namespace qserve::quantizer
