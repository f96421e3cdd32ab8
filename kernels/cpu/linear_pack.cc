// Canonical weights -> panels (linear_panel.h). At load; each thread packs the panels that it will
// multiply, so that memory lies near. Whole weights, or pieces that the packing threads read.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_float.h"
#include "kernels/cpu/linear_panel.h"

namespace qserve::kernels::cpu {
namespace {

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// How much of a weight a thread reads and packs at a time: of this many codes, what is read stays
// in its second-level cache until it is packed.
constexpr int64_t kPieceCodes = int64_t{1} << 19;

// Codes of one row with zeros before and behind, as kernels see it.
void PadRow(const LinearWeight& w, int64_t row, std::vector<uint8_t>& padded) {
  std::fill(padded.begin(), padded.end(), uint8_t{0});
  std::copy_n(w.codes.data() + row * w.k, w.k, padded.data() + w.lead);
}

void PackW4Row(const std::vector<uint8_t>& padded, uint8_t* to) {
  for (size_t k = 0; k < padded.size(); k += 8, to += kPanelRows * 4) {
    uint32_t low = 0, high = 0;
    std::memcpy(&low, padded.data() + k, sizeof(low));
    std::memcpy(&high, padded.data() + k + 4, sizeof(high));
    low |= high << 4;  // codes are below 16: no carry between bytes
    std::memcpy(to, &low, sizeof(low));
  }
}

void PackW8Row(const std::vector<uint8_t>& padded, uint8_t* to) {
  for (size_t k = 0; k < padded.size(); k += 4, to += kPanelRows * 4)
    std::memcpy(to, padded.data() + k, 4);
}

// Group scales and offsets of row `from` of `w`, which is `row` of the packed weight.
void PackGroups(const LinearWeight& w, int64_t from, int64_t row, PanelLinear& packed) {
  const int64_t groups = packed.groups();
  uint8_t* scales =
      packed.scales.as<uint8_t>() + row / kPanelRows * groups * kPanelRows + row % kPanelRows;
  int16_t* offsets = packed.offsets.as<int16_t>() +
                     (row / kPanelRows * packed.group_pairs() * kPanelRows + row % kPanelRows) * 2;
  for (int64_t g = 0; g < groups; ++g) {
    const auto at = static_cast<size_t>(from * groups + g);
    scales[g * kPanelRows] = w.group_scale[at];
    offsets[g / 2 * kPanelRows * 2 + g % 2] = w.group_offset[at];
  }
}

void CopyRows(const std::vector<float>& from, int64_t begin, int64_t count, int64_t to_row,
              std::vector<float>& to) {
  if (!from.empty()) std::copy_n(from.begin() + begin, count, to.begin() + to_row);
}

// Rows [begin, begin + count) of `w`, which are those from `to_row` on of the packed weight.
void PackRows(const LinearWeight& w, int64_t begin, int64_t count, int64_t to_row,
              PanelLinear& packed) {
  std::vector<uint8_t> padded(static_cast<size_t>(packed.kp));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = to_row + i;
    const int64_t in_panel = row % kPanelRows;
    uint8_t* to = packed.codes.as<uint8_t>() + row / kPanelRows * packed.panel_bytes;
    if (w.format == WeightFormat::kHalfFixedOrder) {
      std::memcpy(to + in_panel * packed.kp * 2, w.floats.data() + (begin + i) * w.k * 2,
                  static_cast<size_t>(w.k * 2));
      continue;
    }
    PadRow(w, begin + i, padded);
    if (w.format == WeightFormat::kW8) {
      PackW8Row(padded, to + in_panel * 4);
    } else {
      PackW4Row(padded, to + in_panel * 4);
    }
    if (w.format == WeightFormat::kW4Group128) PackGroups(w, begin + i, row, packed);
  }
  CopyRows(w.scale, begin, count, to_row, packed.row_scale);
  CopyRows(w.scaled_zero, begin, count, to_row, packed.scaled_zero);
  CopyRows(w.bias, begin, count, to_row, packed.bias);
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

// A weight of `n` rows like `w`, with all memory and nothing in it.
StatusOr<std::unique_ptr<PanelLinear>> NewPanels(const LinearWeight& w, int64_t n) {
  auto packed = std::make_unique<PanelLinear>();
  packed->format = w.format;
  packed->n = n;
  packed->k = w.k;
  packed->lead = w.lead;
  packed->panels = RoundUp(n, 2 * kPanelRows) / kPanelRows;
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
  const auto rows = static_cast<size_t>(packed->panels * kPanelRows);
  if (!w.scale.empty()) packed->row_scale.resize(rows);
  if (!w.scaled_zero.empty()) packed->scaled_zero.resize(rows);
  packed->bias.resize(rows);
  return packed;
}

// Every thread reads the rows that it packs, piece by piece; the first failure ends all.
class PiecePacker {
 public:
  PiecePacker(const RowReader& read, PanelLinear& packed) : read_(read), packed_(packed) {}

  // Rows of the first piece, read before its format was known, are `first`.
  Status Pack(ThreadPool& pool, const LinearWeight& first) {
    Take(first, 0);
    const int64_t unit = 2 * kPanelRows;
    const int64_t left = packed_.n - first.n;
    pool.ParallelFor((left + unit - 1) / unit, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t stop = std::min(packed_.n, first.n + end * unit);
      int64_t row = first.n + begin * unit;
      while (row < stop && !failed_.load(std::memory_order_relaxed)) {
        const int64_t count = std::min(stop - row, PieceRows(packed_.k));
        StatusOr<LinearWeight> piece = read_(row, row + count);
        if (piece.ok()) {
          Take(*piece, row);
        } else {
          Fail(piece.status());
        }
        row += count;
      }
    });
    if (!biased_) packed_.bias.clear();
    return failure_;
  }

  static int64_t PieceRows(int64_t k) {
    const int64_t unit = 2 * kPanelRows;
    return std::max(unit, kPieceCodes / k / unit * unit);
  }

 private:
  void Take(const LinearWeight& piece, int64_t row) {
    if (Status status = Check(piece, row); !status.ok()) return Fail(std::move(status));
    if (!piece.bias.empty()) biased_ = true;
    PackRows(piece, 0, piece.n, row, packed_);
  }

  Status Check(const LinearWeight& piece, int64_t row) const {
    if (Status status = Validate(piece); !status.ok()) return status;
    if (piece.format != packed_.format || piece.k != packed_.k || piece.lead != packed_.lead ||
        piece.n > packed_.n - row) {
      return InvalidArgument("cpu: pieces of a weight differ in format or columns");
    }
    return {};
  }

  void Fail(Status status) {
    const std::lock_guard lock(mutex_);
    if (!failed_.exchange(true)) failure_ = std::move(status);
  }

  const RowReader& read_;
  PanelLinear& packed_;
  std::mutex mutex_;
  std::atomic<bool> failed_ = false;
  std::atomic<bool> biased_ = false;
  Status failure_;
};

}  // namespace

StatusOr<std::unique_ptr<PackedLinear>> PackPanels(ThreadPool& pool, const LinearWeight& w) {
  if (w.format == WeightFormat::kFloat) return PackFloat(pool, w);
  StatusOr<std::unique_ptr<PanelLinear>> made = NewPanels(w, w.n);
  if (!made.ok()) return made.status();
  PanelLinear& packed = **made;
  if (w.bias.empty()) packed.bias.clear();
  pool.ParallelFor(packed.panels, 2, [&](int64_t begin, int64_t end, int) {
    const int64_t row = begin * kPanelRows;
    PackRows(w, row, std::min(w.n, end * kPanelRows) - row, row, packed);
  });
  return std::unique_ptr<PackedLinear>(*std::move(made));
}

StatusOr<std::unique_ptr<PackedLinear>> PackPanelPieces(ThreadPool& pool, int64_t rows,
                                                        const RowReader& read) {
  if (rows < 1) return InvalidArgument("cpu: a weight without rows");
  StatusOr<LinearWeight> first = read(0, std::min(rows, 2 * kPanelRows));
  if (!first.ok()) return first.status();
  if (first->format == WeightFormat::kFloat) {
    return InvalidArgument("cpu: this weight is not packed in pieces");
  }
  StatusOr<std::unique_ptr<PanelLinear>> made = NewPanels(*first, rows);
  if (!made.ok()) return made.status();
  if (Status status = PiecePacker(read, **made).Pack(pool, *first); !status.ok()) return status;
  return std::unique_ptr<PackedLinear>(*std::move(made));
}

}  // namespace qserve::kernels::cpu
