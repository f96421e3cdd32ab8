// Rotary position tables, see rope_table.h for the formulas' sources.
#include "kernels/quant/rope_table.h"

#include <algorithm>
#include <string>

#include "kernels/quant/portable_math.h"

namespace qserve::kernels {
namespace {

constexpr double kPi = 3.14159265358979323846;

Status Check(const RopeSpec& spec) {
  if (spec.head_dim <= 0 || spec.head_dim % 2 != 0)
    return InvalidArgument("rope: head_dim is not even");
  if (!(spec.theta > 1) || !(spec.theta < 1e30))
    return InvalidArgument("rope: theta is not above 1");
  if (spec.type == RopeType::kDefault) return {};
  if (!(spec.factor >= 1) || !(spec.factor < 1e9))
    return InvalidArgument("rope: factor is below 1");
  if (spec.type == RopeType::kLinear) return {};
  if (spec.original_max_position_embeddings <= 0) {
    return InvalidArgument("rope: original_max_position_embeddings is missing");
  }
  if (spec.type == RopeType::kLlama3) {
    const bool ordered = spec.low_freq_factor > 0 && spec.high_freq_factor > spec.low_freq_factor;
    return ordered ? Status()
                   : InvalidArgument("rope: high_freq_factor is not above low_freq_factor");
  }
  if (!(spec.beta_slow > 0) || !(spec.beta_fast >= spec.beta_slow)) {
    return InvalidArgument("rope: beta_fast is below beta_slow");
  }
  if (spec.attention_factor && !(*spec.attention_factor > 0 && *spec.attention_factor < 1e6)) {
    return InvalidArgument("rope: attention_factor is not positive");
  }
  return {};
}

// Long wavelengths are interpolated, short ones kept, those between blended.
double Llama3Frequency(const RopeSpec& spec, double frequency) {
  const auto length = static_cast<double>(spec.original_max_position_embeddings);
  const double wavelength = 2 * kPi / frequency;
  if (wavelength < length / spec.high_freq_factor) return frequency;
  if (wavelength > length / spec.low_freq_factor) return frequency / spec.factor;
  const double smooth =
      (length / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
  return (1 - smooth) * frequency / spec.factor + smooth * frequency;
}

double Floor(double x) {
  const auto whole = static_cast<double>(static_cast<int64_t>(x));
  return whole > x ? whole - 1 : whole;
}

// The channel whose frequency turns `rotations` times within the original length.
double YarnChannel(const RopeSpec& spec, double rotations) {
  const auto length = static_cast<double>(spec.original_max_position_embeddings);
  return spec.head_dim * PortableLog(length / (rotations * 2 * kPi)) /
         (2 * PortableLog(spec.theta));
}

struct YarnRange {
  double low;
  double high;
};
YarnRange YarnBlend(const RopeSpec& spec) {
  double low = YarnChannel(spec, spec.beta_fast), high = YarnChannel(spec, spec.beta_slow);
  if (spec.truncate) {
    low = Floor(low);
    high = -Floor(-high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(spec.head_dim - 1));
  if (low == high) high += 0.001;
  return {low, high};
}

double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * PortableLog(factor) + 1.0;
}

}  // namespace

StatusOr<std::vector<float>> RopeFrequencies(const RopeSpec& spec) {
  if (Status status = Check(spec); !status.ok()) return status;
  const YarnRange blend = spec.type == RopeType::kYarn ? YarnBlend(spec) : YarnRange{};
  std::vector<float> frequencies(static_cast<size_t>(spec.head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double f = PortablePow(spec.theta, -2.0 * static_cast<double>(i) / spec.head_dim);
    if (spec.type == RopeType::kLinear) f = f / spec.factor;
    if (spec.type == RopeType::kLlama3) f = Llama3Frequency(spec, f);
    if (spec.type == RopeType::kYarn) {
      const double ramp =
          std::clamp((static_cast<double>(i) - blend.low) / (blend.high - blend.low), 0.0, 1.0);
      f = f / spec.factor * ramp + f * (1 - ramp);
    }
    frequencies[i] = static_cast<float>(f);
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeSpec& spec) {
  if (spec.type != RopeType::kYarn) return 1;
  if (spec.attention_factor) return *spec.attention_factor;
  if (spec.mscale != 0 && spec.mscale_all_dim != 0) {
    return YarnMscale(spec.factor, spec.mscale) / YarnMscale(spec.factor, spec.mscale_all_dim);
  }
  return YarnMscale(spec.factor, 1);
}

StatusOr<std::vector<float>> BuildRopeTable(const RopeSpec& spec, int64_t positions) {
  constexpr int64_t kMostPositions = int64_t{1} << 24;
  if (positions < 0 || positions > kMostPositions)
    return InvalidArgument("rope: too many positions");
  StatusOr<std::vector<float>> frequencies = RopeFrequencies(spec);
  if (!frequencies.ok()) return frequencies.status();
  const double factor = RopeAttentionFactor(spec);
  const auto half = static_cast<size_t>(spec.head_dim / 2);
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  for (size_t p = 0; p < static_cast<size_t>(positions); ++p) {
    float* row = table.data() + p * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const SinCos turn =
          PortableSinCos(static_cast<double>(p) * static_cast<double>((*frequencies)[i]));
      row[i] = static_cast<float>(turn.cos * factor);
      row[half + i] = static_cast<float>(turn.sin * factor);
    }
  }
  return table;
}

}  // namespace qserve::kernels
