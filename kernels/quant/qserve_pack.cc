// QServe's checkpoint order <-> canonical weights, four codes at a time.
#include "kernels/quant/qserve_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/quant/code_range.h"
#include "kernels/quant/half.h"

namespace qserve::kernels {
namespace {

constexpr int64_t kTile = 32;        // rows and columns of a tile
constexpr int64_t kTileBytes = 512;  // 1024 codes
constexpr int64_t kMaxSize = int64_t{1} << 26;

Status Fail(const std::string& what) { return InvalidArgument("QServe weight: " + what); }

int64_t ScaleColumn(int64_t n) { return n / 32 * 32 + n % 8 * 4 + n % 32 / 8; }

// Calls visit(byte in tile, row, column) for every run of four bytes of a tile: the low nibbles are
// codes (row, column..column + 3), the high ones those of row + 16.
template <class Visit>
void ForEachRun(Visit visit) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int word = 0; word < 4; ++word)
      visit(lane * 16 + word * 4, word % 2 * 8 + lane / 4, word / 2 * 16 + lane % 4 * 4);
  }
}

uint32_t Load4(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
void Store4(uint8_t* to, uint32_t value) { std::memcpy(to, &value, sizeof(value)); }

void PackTile(const uint8_t* codes, int64_t stride, uint8_t* tile) {
  ForEachRun([&](int byte, int row, int column) {
    const uint32_t low = Load4(codes + row * stride + column);
    const uint32_t high = Load4(codes + (row + 16) * stride + column);
    Store4(tile + byte, low | high << 4);  // codes are below 16: no carry between bytes
  });
}

void UnpackTile(const uint8_t* tile, uint8_t* codes, int64_t stride) {
  ForEachRun([&](int byte, int row, int column) {
    const uint32_t both = Load4(tile + byte);
    Store4(codes + row * stride + column, both & 0x0f0f0f0fu);
    Store4(codes + (row + 16) * stride + column, both >> 4 & 0x0f0f0f0fu);
  });
}

Status ToHalves(const char* name, const std::vector<float>& values, std::vector<uint16_t>& halves) {
  halves.reserve(values.size());
  for (const float value : values) {
    halves.push_back(FloatToHalf(value));
    if (HalfToFloat(halves.back()) != value)
      return Fail(std::string(name) + " holds a value that is not fp16");
  }
  return {};
}

Status FromHalves(const char* name, std::span<const uint8_t> raw, int64_t begin, int64_t end,
                  std::vector<float>& values) {
  values.resize(static_cast<size_t>(end - begin));
  for (int64_t i = begin; i < end; ++i) {
    uint16_t half;
    std::memcpy(&half, raw.data() + 2 * i, sizeof(half));
    const float value = HalfToFloat(half);
    if (!std::isfinite(value))
      return Fail(std::string(name) + " is not finite in row " + std::to_string(i));
    values[static_cast<size_t>(i - begin)] = value;
  }
  return {};
}

Status CheckView(const QServeView& v) {
  const bool group = v.format == WeightFormat::kW4Group128;
  if (!group && v.format != WeightFormat::kW4PerChannel) return Fail("the format is not a QoQ one");
  if (v.n <= 0 || v.k <= 0 || v.n > kMaxSize || v.k > kMaxSize || v.n % kTile != 0 ||
      v.k % kTile != 0) {
    return Fail("shape " + std::to_string(v.n) + " x " + std::to_string(v.k) +
                " is not made of 32 x 32 tiles");
  }
  if (group && v.k % kWeightGroup != 0) return Fail("columns are not made of groups of 128");
  const auto n = static_cast<size_t>(v.n);
  const auto k = static_cast<size_t>(v.k);
  const size_t groups = group ? n * (k / static_cast<size_t>(kWeightGroup)) : 0;
  if (v.qweight.size() != n * (k / 2)) return Fail("qweight has a wrong size");
  if (v.s1_scales.size() != 2 * n) return Fail("s1_scales has a wrong size");
  if (v.s1_szeros.size() != (group ? 0 : 2 * n)) return Fail("s1_szeros has a wrong size");
  if (v.s2_scales.size() != groups || v.s2_zeros.size() != groups)
    return Fail("s2_scales or s2_zeros has a wrong size");
  if (!v.bias.empty() && v.bias.size() != 2 * n) return Fail("bias has a wrong size");
  return {};
}

Status CheckSlice(const QServeView& v, const QServeSlice& s) {
  const bool inside = s.row_begin >= 0 && s.row_begin < s.row_end && s.row_end <= v.n &&
                      s.column_begin >= 0 && s.column_begin < s.column_end && s.column_end <= v.k;
  if (!inside || (s.row_begin | s.row_end | s.column_begin | s.column_end) % kTile != 0) {
    return Fail("slice rows [" + std::to_string(s.row_begin) + ", " + std::to_string(s.row_end) +
                "), columns [" + std::to_string(s.column_begin) + ", " +
                std::to_string(s.column_end) + ") is not made of 32 x 32 tiles of the weight");
  }
  return {};
}

// The byte on disk is the offset modulo 256. At most one offset keeps a given code in int8, so any
// code of the group tells which; the others are then checked against it.
Status RecoverGroups(const QServeView& v, const QServeSlice& s, LinearWeight& w) {
  const int64_t groups = w.groups();
  const int64_t first_group = s.column_begin / kWeightGroup;
  w.group_scale.resize(static_cast<size_t>(w.n * groups));
  w.group_offset.resize(static_cast<size_t>(w.n * groups));
  for (int64_t row = 0; row < w.n; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const auto at = static_cast<size_t>((first_group + g) * v.n + ScaleColumn(s.row_begin + row));
      const int scale = v.s2_scales[at];
      const uint8_t* codes = w.codes.data() + row * w.k;
      const int64_t begin = std::max<int64_t>(0, g * kWeightGroup - w.lead);
      const CodeRange range =
          RangeOf(codes + begin, std::min(w.k, (g + 1) * kWeightGroup - w.lead) - begin);
      const int lowest = static_cast<int8_t>(
          range.low * scale + v.s2_zeros[at]);  // modulo 256, as the byte add of a GPU does
      const int offset = lowest - range.low * scale;
      if (scale < 1 || scale > 127 || range.high * scale + offset > 127) {
        return Fail("group " + std::to_string(first_group + g) + " of row " +
                    std::to_string(s.row_begin + row) + " leaves int8 (s2_scales " +
                    std::to_string(scale) + ", s2_zeros " + std::to_string(v.s2_zeros[at]) +
                    "); s2_* in another order than QServe's look like this");
      }
      w.group_scale[static_cast<size_t>(row * groups + g)] = static_cast<uint8_t>(scale);
      w.group_offset[static_cast<size_t>(row * groups + g)] = static_cast<int16_t>(offset);
    }
  }
  return {};
}

}  // namespace

QServeView ViewOf(const QServeTensors& t) {
  const auto bytes = [](const std::vector<uint16_t>& v) {
    return std::span(reinterpret_cast<const uint8_t*>(v.data()), 2 * v.size());
  };
  return {.format = t.format,
          .n = t.n,
          .k = t.k,
          .qweight = t.qweight,
          .s1_scales = bytes(t.s1_scales),
          .s1_szeros = bytes(t.s1_szeros),
          .s2_scales = t.s2_scales,
          .s2_zeros = t.s2_zeros,
          .bias = bytes(t.bias)};
}

StatusOr<QServeTensors> PackQServe(const LinearWeight& w) {
  if (Status status = Validate(w); !status.ok()) return status;
  const bool group = w.format == WeightFormat::kW4Group128;
  if (!group && w.format != WeightFormat::kW4PerChannel) return Fail("the format is not a QoQ one");
  if (w.lead != 0 || w.n % kTile != 0 || w.k % (group ? kWeightGroup : kTile) != 0) {
    return Fail("only a whole matrix of 32 x 32 tiles (g128: of groups of 128) can be stored");
  }
  QServeTensors out;
  out.format = w.format;
  out.n = w.n;
  out.k = w.k;
  if (Status status = ToHalves("scale", w.scale, out.s1_scales); !status.ok()) return status;
  if (Status status = ToHalves("scaled_zero", w.scaled_zero, out.s1_szeros); !status.ok())
    return status;
  if (Status status = ToHalves("bias", w.bias, out.bias); !status.ok()) return status;
  out.qweight.resize(static_cast<size_t>(w.n * (w.k / 2)));
  for (int64_t n = 0; n < w.n; n += kTile) {
    for (int64_t k = 0; k < w.k; k += kTile) {
      PackTile(w.codes.data() + n * w.k + k, w.k,
               out.qweight.data() + (n / kTile * (w.k / kTile) + k / kTile) * kTileBytes);
    }
  }
  out.s2_scales.resize(w.group_scale.size());
  out.s2_zeros.resize(w.group_offset.size());
  for (int64_t i = 0; i < static_cast<int64_t>(w.group_scale.size()); ++i) {
    const auto at = static_cast<size_t>(i % w.groups() * w.n + ScaleColumn(i / w.groups()));
    out.s2_scales[at] = w.group_scale[static_cast<size_t>(i)];
    out.s2_zeros[at] = static_cast<uint8_t>(w.group_offset[static_cast<size_t>(i)]);
  }
  return out;
}

StatusOr<LinearWeight> UnpackQServe(const QServeView& v, const QServeSlice& s,
                                    int64_t* bytes_touched) {
  if (Status status = CheckView(v); !status.ok()) return status;
  if (Status status = CheckSlice(v, s); !status.ok()) return status;
  LinearWeight w;
  w.format = v.format;
  w.n = s.row_end - s.row_begin;
  w.k = s.column_end - s.column_begin;
  w.lead = s.column_begin % kWeightGroup;
  if (Status status = FromHalves("s1_scales", v.s1_scales, s.row_begin, s.row_end, w.scale);
      !status.ok())
    return status;
  if (!v.s1_szeros.empty()) {
    if (Status status = FromHalves("s1_szeros", v.s1_szeros, s.row_begin, s.row_end, w.scaled_zero);
        !status.ok()) {
      return status;
    }
  }
  if (!v.bias.empty() && s.column_begin == 0) {
    if (Status status = FromHalves("bias", v.bias, s.row_begin, s.row_end, w.bias); !status.ok())
      return status;
  }
  w.codes.resize(static_cast<size_t>(w.n * w.k));
  for (int64_t n = 0; n < w.n; n += kTile) {
    for (int64_t k = 0; k < w.k; k += kTile) {
      const int64_t tile = (s.row_begin + n) / kTile * (v.k / kTile) + (s.column_begin + k) / kTile;
      UnpackTile(v.qweight.data() + tile * kTileBytes, w.codes.data() + n * w.k + k, w.k);
    }
  }
  const bool group = v.format == WeightFormat::kW4Group128;
  if (group) {
    if (Status status = RecoverGroups(v, s, w); !status.ok()) return status;
  }
  if (bytes_touched != nullptr) {
    const int64_t halves = 1 + (v.s1_szeros.empty() ? 0 : 1) + (w.bias.empty() ? 0 : 1);
    *bytes_touched += w.n * (w.k / 2) + 2 * halves * w.n + (group ? 2 * w.n * w.groups() : 0);
  }
  return w;
}

}  // namespace qserve::kernels
