// Packing into fragment order and back. A row tile is first spread into 64 rows of padded bytes,
// then picked up word by word as the lanes want it. Called while loading, on any thread.
#include "kernels/quant/gpu_weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"

namespace qserve::kernels {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kLaneBytes = 16;
constexpr int64_t kStepBytes = kGpuTileLanes * kLaneBytes;  // of int8 and fp16 tiles; u4: of a pair

size_t Size(int64_t value) { return static_cast<size_t>(value); }

bool IsU4(WeightFormat format) {
  return format == WeightFormat::kW4PerChannel || format == WeightFormat::kW4Group128;
}

uint32_t WordAt(const uint8_t* from) {
  uint32_t word = 0;
  std::memcpy(&word, from, sizeof word);
  return word;
}
void PutWord(uint8_t* to, uint32_t word) { std::memcpy(to, &word, sizeof word); }

// The rows of a tile as bytes, one behind another: 64 rows of `stride` bytes, codes of 4 bits one a
// byte.
struct Rows {
  std::vector<uint8_t> bytes;
  int64_t stride = 0;
  uint8_t* row(int64_t r) { return bytes.data() + r * stride; }
};

// Which bytes of the padded rows a lane's word covers. Word 2 j + h of a K step belongs to row + 8
// h and bytes + 16 j in all formats.
struct LanePlace {
  int64_t row = 0;
  int64_t byte = 0;  // within 32 bytes of a K step
};
LanePlace PlaceOf(int64_t lane) { return {lane / 32 * 16 + lane % 32 / 4, lane % 4 * 4}; }

void PackU4Tile(Rows& rows, int64_t first_byte, uint8_t* tile) {
  for (int64_t pair = 0; pair < 2; ++pair) {
    for (int64_t lane = 0; lane < kGpuTileLanes; ++lane) {
      const LanePlace place = PlaceOf(lane);
      const uint8_t* low = rows.row(place.row) + first_byte + 64 * pair + place.byte;
      const uint8_t* high = rows.row(place.row + 8) + first_byte + 64 * pair + place.byte;
      uint8_t* to = tile + pair * kStepBytes + lane * kLaneBytes;
      for (int64_t word = 0; word < 4; ++word) {
        PutWord(to + 4 * word, WordAt(low + 16 * word) | WordAt(high + 16 * word) << 4);
      }
    }
  }
}

void UnpackU4Tile(const uint8_t* tile, int64_t first_byte, Rows& rows) {
  for (int64_t pair = 0; pair < 2; ++pair) {
    for (int64_t lane = 0; lane < kGpuTileLanes; ++lane) {
      const LanePlace place = PlaceOf(lane);
      const int64_t byte = first_byte + 64 * pair + place.byte;
      const uint8_t* from = tile + pair * kStepBytes + lane * kLaneBytes;
      for (int64_t word = 0; word < 4; ++word) {
        const uint32_t codes = WordAt(from + 4 * word);
        PutWord(rows.row(place.row) + byte + 16 * word, codes & 0x0f0f0f0fu);
        PutWord(rows.row(place.row + 8) + byte + 16 * word, codes >> 4 & 0x0f0f0f0fu);
      }
    }
  }
}

// Both ways for int8 and fp16, whose words are the rows' own.
template <class Move>
void MoveWideTile(int64_t first_byte, Move move) {
  for (int64_t step = 0; step < 4; ++step) {
    for (int64_t lane = 0; lane < kGpuTileLanes; ++lane) {
      const LanePlace place = PlaceOf(lane);
      for (int64_t word = 0; word < 4; ++word) {
        move(place.row + word % 2 * 8, first_byte + 32 * step + word / 2 * 16 + place.byte,
             step * kStepBytes + lane * kLaneBytes + 4 * word);
      }
    }
  }
}

// Codes between a group's first and last stored column are those of the weight; the padding before
// and behind repeats the nearest one.
void RepeatIntoPadding(uint8_t* row, int64_t first, int64_t count, int64_t padded) {
  std::fill(row, row + first, row[first]);
  std::fill(row + first + count, row + padded, row[first + count - 1]);
}

int64_t ElementBytes(WeightFormat format) {
  return format == WeightFormat::kHalfFixedOrder ? 2 : 1;
}

void SpreadRows(const LinearWeight& w, const GpuWeightLayout& layout, int64_t row_tile,
                Rows& rows) {
  const int64_t size = ElementBytes(w.format);
  const uint8_t* from = size == 2 ? w.floats.data() : w.codes.data();
  for (int64_t r = 0; r < kGpuTileRows; ++r) {
    uint8_t* row = rows.row(r);
    std::fill(row, row + rows.stride, uint8_t{0});
    const int64_t n = row_tile * kGpuTileRows + r;
    if (n >= layout.n) continue;
    std::memcpy(row + layout.lead * size, from + n * w.k * size, Size(w.k * size));
    if (w.format == WeightFormat::kW4Group128)
      RepeatIntoPadding(row, layout.lead, w.k, rows.stride);
  }
}

// Where the group word of row r of a tile lies among the tile's 64.
int64_t GroupIndex(int64_t r) { return r / 16 * 16 + r % 8 * 2 + r / 8 % 2; }

uint8_t* GroupWords(const GpuWeightLayout& layout, int64_t row_tile, int64_t k_tile,
                    uint8_t* buffer) {
  return buffer + layout.groups + (row_tile * layout.k_tiles + k_tile) * kGpuGroupBytes;
}

void PackGroups(const LinearWeight& w, const GpuWeightLayout& layout, int64_t row_tile,
                uint8_t* buffer) {
  for (int64_t r = 0; r < kGpuTileRows && row_tile * kGpuTileRows + r < layout.n; ++r) {
    const int64_t first = (row_tile * kGpuTileRows + r) * layout.k_tiles;
    for (int64_t group = 0; group < layout.k_tiles; ++group) {
      const uint32_t scale = w.group_scale[Size(first + group)];
      const auto shifted = static_cast<uint16_t>(128 + w.group_offset[Size(first + group)]);
      PutWord(GroupWords(layout, row_tile, group, buffer) + 4 * GroupIndex(r),
              scale | uint32_t{shifted} << 16);
    }
  }
}

void PutFloats(const std::vector<float>& values, int64_t offset, int64_t begin, int64_t end,
               uint8_t* buffer) {
  const int64_t last = std::min(end, static_cast<int64_t>(values.size()));
  if (begin >= last) return;
  std::memcpy(buffer + offset + begin * 4, values.data() + begin, Size((last - begin) * 4));
}

std::vector<float> GetFloats(const uint8_t* buffer, int64_t offset, int64_t count) {
  std::vector<float> values(Size(count));
  std::memcpy(values.data(), buffer + offset, Size(count * 4));
  return values;
}

void UnpackGroups(const GpuWeightLayout& layout, const uint8_t* buffer, LinearWeight& w) {
  w.group_scale.resize(Size(w.n * layout.k_tiles));
  w.group_offset.resize(w.group_scale.size());
  for (int64_t n = 0; n < w.n; ++n) {
    for (int64_t group = 0; group < layout.k_tiles; ++group) {
      const int64_t tile = n / kGpuTileRows * layout.k_tiles + group;
      const uint32_t word =
          WordAt(buffer + layout.groups + tile * kGpuGroupBytes + 4 * GroupIndex(n % kGpuTileRows));
      const size_t at = Size(n * layout.k_tiles + group);
      w.group_scale[at] = static_cast<uint8_t>(word & 0xffu);
      w.group_offset[at] = static_cast<int16_t>(static_cast<int16_t>(word >> 16) - 128);
    }
  }
}

}  // namespace

GpuWeightLayout GpuLayoutOf(const LinearWeight& weight) {
  QSERVE_CHECK(HasGpuOrder(weight.format));
  GpuWeightLayout layout;
  layout.format = weight.format;
  layout.n = weight.n;
  layout.k = weight.k;
  layout.lead = weight.lead;
  layout.has_bias = !weight.bias.empty();
  const int64_t columns = GpuTileColumns(weight.format);
  layout.row_tiles = (weight.n + kGpuTileRows - 1) / kGpuTileRows;
  layout.k_tiles = (weight.lead + weight.k + columns - 1) / columns;
  layout.tile_bytes = IsU4(weight.format) ? 2 * kStepBytes : 4 * kStepBytes;
  const auto section = [&layout](int64_t bytes) {
    const int64_t offset = layout.bytes;
    layout.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  };
  const int64_t all_tiles = layout.row_tiles * layout.k_tiles;
  const int64_t row_floats = layout.padded_rows() * 4;
  layout.tiles = section(all_tiles * layout.tile_bytes);
  layout.groups =
      section(weight.format == WeightFormat::kW4Group128 ? all_tiles * kGpuGroupBytes : 0);
  layout.scale = section(TakesInt8(weight.format) ? row_floats : 0);
  layout.scaled_zero = section(weight.format == WeightFormat::kW4PerChannel ? row_floats : 0);
  layout.bias = section(layout.has_bias ? row_floats : 0);
  return layout;
}

void PackGpuRowTiles(const LinearWeight& weight, const GpuWeightLayout& layout, int64_t begin,
                     int64_t end, uint8_t* buffer) {
  QSERVE_CHECK(begin >= 0 && begin <= end && end <= layout.row_tiles);
  Rows rows;
  rows.stride = layout.activation_bytes();
  rows.bytes.resize(Size(rows.stride * kGpuTileRows));
  for (int64_t row_tile = begin; row_tile < end; ++row_tile) {
    SpreadRows(weight, layout, row_tile, rows);
    for (int64_t k_tile = 0; k_tile < layout.k_tiles; ++k_tile) {
      uint8_t* tile =
          buffer + layout.tiles + (row_tile * layout.k_tiles + k_tile) * layout.tile_bytes;
      const int64_t first_byte = k_tile * kGpuTileActivationBytes;
      if (IsU4(layout.format)) {
        PackU4Tile(rows, first_byte, tile);
      } else {
        MoveWideTile(first_byte, [&](int64_t row, int64_t byte, int64_t place) {
          std::memcpy(tile + place, rows.row(row) + byte, 4);
        });
      }
    }
    if (layout.format == WeightFormat::kW4Group128) PackGroups(weight, layout, row_tile, buffer);
  }
  const int64_t first_row = begin * kGpuTileRows, last_row = end * kGpuTileRows;
  PutFloats(weight.scale, layout.scale, first_row, last_row, buffer);
  PutFloats(weight.scaled_zero, layout.scaled_zero, first_row, last_row, buffer);
  PutFloats(weight.bias, layout.bias, first_row, last_row, buffer);
}

LinearWeight UnpackGpuWeight(const GpuWeightLayout& layout, const uint8_t* buffer) {
  LinearWeight w;
  w.format = layout.format;
  w.n = layout.n;
  w.k = layout.k;
  w.lead = layout.lead;
  const bool half = w.format == WeightFormat::kHalfFixedOrder;
  w.float_type = half ? FloatType::kF16 : FloatType::kF32;
  const int64_t size = ElementBytes(w.format);
  std::vector<uint8_t>& elements = half ? w.floats : w.codes;
  elements.resize(Size(w.n * w.k * size));
  Rows rows;
  rows.stride = layout.activation_bytes();
  rows.bytes.resize(Size(rows.stride * kGpuTileRows));
  for (int64_t row_tile = 0; row_tile < layout.row_tiles; ++row_tile) {
    for (int64_t k_tile = 0; k_tile < layout.k_tiles; ++k_tile) {
      const uint8_t* tile =
          buffer + layout.tiles + (row_tile * layout.k_tiles + k_tile) * layout.tile_bytes;
      const int64_t first_byte = k_tile * kGpuTileActivationBytes;
      if (IsU4(layout.format)) {
        UnpackU4Tile(tile, first_byte, rows);
      } else {
        MoveWideTile(first_byte, [&](int64_t row, int64_t byte, int64_t place) {
          std::memcpy(rows.row(row) + byte, tile + place, 4);
        });
      }
    }
    const int64_t first_row = row_tile * kGpuTileRows;
    for (int64_t r = 0; r < kGpuTileRows && first_row + r < w.n; ++r) {
      std::memcpy(elements.data() + (first_row + r) * w.k * size, rows.row(r) + layout.lead * size,
                  Size(w.k * size));
    }
  }
  if (w.format == WeightFormat::kW4Group128) UnpackGroups(layout, buffer, w);
  if (TakesInt8(w.format)) w.scale = GetFloats(buffer, layout.scale, w.n);
  if (w.format == WeightFormat::kW4PerChannel)
    w.scaled_zero = GetFloats(buffer, layout.scaled_zero, w.n);
  if (layout.has_bias) w.bias = GetFloats(buffer, layout.bias, w.n);
  return w;
}

}  // namespace qserve::kernels
