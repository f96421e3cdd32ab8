// What LDTILECFG reads, for the CPU kernels and for the benchmark of the peak. Constant.
#pragma once

#include <cstdint>

namespace qserve::kernels {

// Palette 1; bytes a row and rows of each of 8 tiles: 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

}  // namespace qserve::kernels
