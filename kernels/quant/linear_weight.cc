// Checks, concatenation and dequantization of canonical weights. Called while loading, by the
// quantizer and by tests, on any thread.
#include "kernels/quant/linear_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/quant/code_range.h"
#include "kernels/quant/half.h"

namespace qserve::kernels {
namespace {

// |code * group_scale + offset| <= 128 and |x| <= 127: up to this many columns every sum stays in
// int32.
constexpr int64_t kMaxColumns = 131072;
constexpr int64_t kMaxRows = int64_t{1} << 26;

Status Fail(const std::string& what) { return InvalidArgument("linear weight: " + what); }

Status ExpectSize(const char* name, size_t have, int64_t want) {
  if (have == static_cast<size_t>(want)) return {};
  return Fail(std::string(name) + " has " + std::to_string(have) + " elements, expected " +
              std::to_string(want));
}

int64_t FloatBytes(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

// Element counts of every vector for a weight of this shape.
struct Sizes {
  int64_t floats = 0, codes = 0, scale = 0, scaled_zero = 0, groups = 0;
};
Sizes ExpectedSizes(const LinearWeight& w) {
  Sizes sizes;
  switch (w.format) {
    case WeightFormat::kFloat:
    case WeightFormat::kHalfFixedOrder:
      sizes.floats = w.n * w.k * FloatBytes(w.float_type);
      break;
    case WeightFormat::kW8:
      sizes.codes = w.n * w.k;
      sizes.scale = w.n;
      break;
    case WeightFormat::kW4PerChannel:
      sizes.codes = w.n * w.k;
      sizes.scale = sizes.scaled_zero = w.n;
      break;
    case WeightFormat::kW4Group128:
      sizes.codes = w.n * w.k;
      sizes.scale = w.n;
      sizes.groups = w.n * w.groups();
      break;
  }
  return sizes;
}

Status CheckSizes(const LinearWeight& w) {
  if (w.n <= 0 || w.k <= 0 || w.n > kMaxRows || w.k > kMaxColumns) {
    return Fail("shape " + std::to_string(w.n) + " x " + std::to_string(w.k) + " is out of range");
  }
  if (w.lead < 0 || w.lead >= kWeightGroup)
    return Fail("lead " + std::to_string(w.lead) + " is out of 0..127");
  const Sizes sizes = ExpectedSizes(w);
  const struct {
    const char* name;
    size_t have;
    int64_t want;
  } vectors[] = {
      {"floats", w.floats.size(), sizes.floats},
      {"codes", w.codes.size(), sizes.codes},
      {"scale", w.scale.size(), sizes.scale},
      {"scaled_zero", w.scaled_zero.size(), sizes.scaled_zero},
      {"group_scale", w.group_scale.size(), sizes.groups},
      {"group_offset", w.group_offset.size(), sizes.groups},
      {"bias", w.bias.size(), w.bias.empty() ? 0 : w.n},
  };
  for (const auto& v : vectors) {
    if (Status status = ExpectSize(v.name, v.have, v.want); !status.ok()) return status;
  }
  return {};
}

bool AllFinite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

// Largest and smallest stored code of each group must stay in int8 once scaled and shifted: in
// between is monotone.
Status CheckGroups(const LinearWeight& w) {
  const int64_t groups = w.groups();
  for (int64_t row = 0; row < w.n; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = std::max<int64_t>(0, g * kWeightGroup - w.lead);
      const int64_t end = std::min(w.k, (g + 1) * kWeightGroup - w.lead);
      const auto* codes = w.codes.data() + row * w.k;
      const CodeRange range = RangeOf(codes + begin, end - begin);
      const int scale = w.group_scale[static_cast<size_t>(row * groups + g)];
      const int offset = w.group_offset[static_cast<size_t>(row * groups + g)];
      if (scale < 1 || scale > 127)
        return Fail("group_scale out of 1..127 in row " + std::to_string(row));
      if (range.low * scale + offset < -128 || range.high * scale + offset > 127) {
        return Fail("a code leaves int8 in row " + std::to_string(row) + ", group " +
                    std::to_string(g));
      }
    }
  }
  return {};
}

Status CheckCodes(const LinearWeight& w) {
  if (w.format == WeightFormat::kW8) {
    bool found = false;
    for (const uint8_t code : w.codes) found |= code == 0x80;
    if (found) return Fail("int8 code -128");
  } else if (w.format == WeightFormat::kW4PerChannel || w.format == WeightFormat::kW4Group128) {
    uint8_t all = 0;
    for (const uint8_t code : w.codes) all |= code;
    if (all > 15) return Fail("a 4-bit code above 15");
  }
  if (w.format == WeightFormat::kW4Group128) return CheckGroups(w);
  return {};
}

float FloatAt(const LinearWeight& w, int64_t index) {
  const uint8_t* raw = w.floats.data() + index * FloatBytes(w.float_type);
  if (w.float_type == FloatType::kF32) {
    float value;
    std::memcpy(&value, raw, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, raw, sizeof(bits));
  return w.float_type == FloatType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
}

template <class T>
void Append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

Status Validate(const LinearWeight& w) {
  if (!TakesInt8(w.format) && w.lead != 0) return Fail("a floating-point weight has no lead");
  if (w.format == WeightFormat::kHalfFixedOrder && w.float_type != FloatType::kF16) {
    return Fail("a fixed-order weight is fp16");
  }
  if (Status status = CheckSizes(w); !status.ok()) return status;
  if (!AllFinite(w.scale) || !AllFinite(w.scaled_zero) || !AllFinite(w.bias)) {
    return Fail("a scale, zero or bias is not finite");
  }
  return CheckCodes(w);
}

StatusOr<LinearWeight> ConcatenateRows(const std::vector<const LinearWeight*>& parts) {
  if (parts.empty()) return Fail("nothing to concatenate");
  const LinearWeight& first = *parts.front();
  LinearWeight whole;
  whole.format = first.format;
  whole.float_type = first.float_type;
  whole.k = first.k;
  whole.lead = first.lead;
  const bool biased = std::any_of(parts.begin(), parts.end(),
                                  [](const LinearWeight* p) { return !p->bias.empty(); });
  for (const LinearWeight* part : parts) {
    if (part->format != first.format || part->float_type != first.float_type ||
        part->k != first.k || part->lead != first.lead) {
      return Fail("parts to concatenate differ in format, columns or lead");
    }
    if (Status status = CheckSizes(*part); !status.ok()) return status;
    whole.n += part->n;
    Append(whole.floats, part->floats);
    Append(whole.codes, part->codes);
    Append(whole.scale, part->scale);
    Append(whole.scaled_zero, part->scaled_zero);
    Append(whole.group_scale, part->group_scale);
    Append(whole.group_offset, part->group_offset);
    Append(whole.bias, part->bias);
    if (biased) whole.bias.resize(static_cast<size_t>(whole.n), 0.0f);
  }
  return whole;
}

LinearWeight SliceColumns(const LinearWeight& w, int64_t begin, int64_t end) {
  QSERVE_CHECK(begin >= 0 && begin < end && end <= w.k);
  LinearWeight slice = w;
  slice.k = end - begin;
  slice.lead = TakesInt8(w.format) ? (w.lead + begin) % kWeightGroup : 0;
  const auto cut = [&](auto& vector, int64_t per_row, int64_t first, int64_t count) {
    if (vector.empty()) return;
    for (int64_t row = 0; row < w.n; ++row) {
      const auto from = vector.begin() + row * per_row + first;
      std::copy(from, from + count, vector.begin() + row * count);
    }
    vector.resize(static_cast<size_t>(w.n * count));
  };
  const int64_t bytes = FloatBytes(w.float_type);
  cut(slice.floats, w.k * bytes, begin * bytes, slice.k * bytes);
  cut(slice.codes, w.k, begin, slice.k);
  const int64_t first_group = (w.lead + begin) / kWeightGroup;
  cut(slice.group_scale, w.groups(), first_group, slice.groups());
  cut(slice.group_offset, w.groups(), first_group, slice.groups());
  if (begin != 0) slice.bias.clear();
  return slice;
}

void DequantizeRow(const LinearWeight& w, int64_t row, float* out) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  for (int64_t c = 0; c < w.k; ++c) {
    const int64_t i = row * w.k + c;
    switch (w.format) {
      case WeightFormat::kFloat:
      case WeightFormat::kHalfFixedOrder:
        out[c] = FloatAt(w, i);
        break;
      case WeightFormat::kW8:
        out[c] = static_cast<float>(static_cast<int8_t>(w.codes[at(i)])) * w.scale[at(row)];
        break;
      case WeightFormat::kW4PerChannel:
        out[c] = static_cast<float>(w.codes[at(i)]) * w.scale[at(row)] - w.scaled_zero[at(row)];
        break;
      case WeightFormat::kW4Group128: {
        const size_t g = at(row * w.groups() + (w.lead + c) / kWeightGroup);
        out[c] = static_cast<float>(w.codes[at(i)] * w.group_scale[g] + w.group_offset[g]) *
                 w.scale[at(row)];
        break;
      }
    }
  }
}

}  // namespace qserve::kernels
