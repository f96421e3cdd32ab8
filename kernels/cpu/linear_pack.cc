// Canonical weights -> panels (linear_panel.h). At load; each thread packs the panels that it will
// multiply, so that memory lies near.
#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_float.h"
#include "kernels/cpu/linear_panel.h"

namespace qserve::kernels::cpu {
namespace {

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Codes of one row with zeros before and behind, as kernels see it.
void PadRow(const LinearWeight& w, int64_t row, std::vector<uint8_t>& padded) {
  std::fill(padded.begin(), padded.end(), uint8_t{0});
  if (row >= w.n) return;
  std::copy_n(w.codes.data() + row * w.k, w.k, padded.data() + w.lead);
}

void PackW4Row(const std::vector<uint8_t>& padded, uint8_t* to) {
  for (size_t k = 0; k < padded.size(); k += 8, to += kPanelRows * 4) {
    for (size_t j = 0; j < 4; ++j)
      to[j] = static_cast<uint8_t>(padded[k + j] | padded[k + 4 + j] << 4);
  }
}

void PackW8Row(const std::vector<uint8_t>& padded, uint8_t* to) {
  for (size_t k = 0; k < padded.size(); k += 4, to += kPanelRows * 4)
    std::memcpy(to, padded.data() + k, 4);
}

void PackGroups(const LinearWeight& w, int64_t row, PanelLinear& packed) {
  const int64_t groups = packed.groups();
  uint8_t* scales =
      packed.scales.as<uint8_t>() + row / kPanelRows * groups * kPanelRows + row % kPanelRows;
  int16_t* offsets = packed.offsets.as<int16_t>() +
                     (row / kPanelRows * packed.group_pairs() * kPanelRows + row % kPanelRows) * 2;
  for (int64_t g = 0; g < groups; ++g) {
    const auto from = static_cast<size_t>(row * groups + g);
    scales[g * kPanelRows] = w.group_scale[from];
    offsets[g / 2 * kPanelRows * 2 + g % 2] = w.group_offset[from];
  }
}

void PackRows(const LinearWeight& w, PanelLinear& packed, int64_t panel) {
  std::vector<uint8_t> padded(static_cast<size_t>(packed.kp));
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t row = panel * kPanelRows + r;
    uint8_t* to = packed.codes.as<uint8_t>() + panel * packed.panel_bytes;
    if (w.format == WeightFormat::kHalfFixedOrder) {
      if (row < w.n)
        std::memcpy(to + r * packed.kp * 2, w.floats.data() + row * w.k * 2,
                    static_cast<size_t>(w.k * 2));
      continue;
    }
    PadRow(w, row, padded);
    if (w.format == WeightFormat::kW8) {
      PackW8Row(padded, to + r * 4);
    } else {
      PackW4Row(padded, to + r * 4);
    }
    if (w.format == WeightFormat::kW4Group128 && row < w.n) PackGroups(w, row, packed);
  }
}

std::vector<float> PadToPanels(const std::vector<float>& values, int64_t panels) {
  std::vector<float> padded = values;
  if (!padded.empty()) padded.resize(static_cast<size_t>(panels * kPanelRows), 0.0f);
  return padded;
}

bool AllocateAll(PanelLinear& packed) {
  const bool group = packed.format == WeightFormat::kW4Group128;
  const int64_t scale_bytes = group ? packed.panels * packed.groups() * kPanelRows : 0;
  const int64_t offset_bytes = group ? packed.panels * packed.group_pairs() * kPanelRows * 4 : 0;
  packed.codes = AlignedMemory::Allocate(packed.panels * packed.panel_bytes);
  packed.scales = AlignedMemory::Allocate(scale_bytes);
  packed.offsets = AlignedMemory::Allocate(offset_bytes);
  packed.bytes = packed.panels * packed.panel_bytes + scale_bytes + offset_bytes;
  return packed.codes.data() != nullptr &&
         (!group || (packed.scales.data() != nullptr && packed.offsets.data() != nullptr));
}

}  // namespace

StatusOr<std::unique_ptr<PackedLinear>> PackPanels(ThreadPool& pool, const LinearWeight& w) {
  if (w.format == WeightFormat::kFloat) return PackFloat(pool, w);
  auto packed = std::make_unique<PanelLinear>();
  packed->format = w.format;
  packed->n = w.n;
  packed->k = w.k;
  packed->lead = w.lead;
  packed->panels = RoundUp(w.n, 2 * kPanelRows) / kPanelRows;
  if (w.format == WeightFormat::kHalfFixedOrder) {
    packed->kp = RoundUp(w.k, 16);
    packed->panel_bytes = kPanelRows * packed->kp * 2;
  } else {
    packed->kp = PaddedColumns(w.lead, w.k);
    packed->panel_bytes = kPanelRows * packed->kp / (w.format == WeightFormat::kW8 ? 1 : 2);
  }
  if (!AllocateAll(*packed)) {
    return Status(StatusCode::kOutOfMemory,
                  "cpu: no memory of " + std::to_string(packed->bytes) + " bytes for weights");
  }
  packed->row_scale = PadToPanels(w.scale, packed->panels);
  packed->scaled_zero = PadToPanels(w.scaled_zero, packed->panels);
  packed->bias = PadToPanels(w.bias, packed->panels);
  pool.ParallelFor(packed->panels, 2, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) PackRows(w, *packed, panel);
  });
  return std::unique_ptr<PackedLinear>(std::move(packed));
}

}  // namespace qserve::kernels::cpu
