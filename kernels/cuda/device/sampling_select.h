// Where a row of logits is cut: the k-th most likely id, or the last of the smallest set whose mass
// reaches a share of the whole. Ties go to the lower id. By histograms, without sorting the
// vocabulary: first over the distance from the maximum, which spreads usual logits well, then, if
// too many ids are left, over ever finer ranges of keys and at last of ids; what fits in a list is
// sorted. Two passes through the row in usual cases.
//
// Masses are sums of exp(x - max) in fixed point, so that their order does not matter: 44 bits
// behind the point, at most 2^18 ids.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row_math.h"
#include "kernels/cuda/device/sampling_row.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

inline constexpr int kSelectBins = 2048;  // and entries of the list

struct Totals {
  uint32_t count = 0;
  uint64_t mass = 0;
};

// The bin in which a goal is reached.
struct FoundBin {
  int32_t bin = 0;
  uint32_t count = 0;  // in it
  Totals before;       // all that comes earlier
};

// Shared memory of a selection.
struct SelectShared {
  uint64_t list[kSelectBins];  // key << 32 | ~id: the larger, the more likely
  uint32_t counts[kSelectBins];
  uint32_t mass_low[kSelectBins];
  uint32_t mass_high[kSelectBins];
  uint64_t warp_mass[32];
  uint32_t warp_count[32];
  uint32_t scratch[64];
  uint32_t list_size;
  FoundBin found;
};

// An id passes if its key is larger, or the same and its id not larger. As it is, all pass.
struct Cut {
  uint32_t key = 0;
  int32_t id = 0x7fffffff;
};
QSERVE_DEVICE bool Passes(const Cut& cut, uint32_t key, int32_t id) {
  return key > cut.key || (key == cut.key && id <= cut.id);
}

// How much is asked for: ids, or mass. A share becomes a mass when the whole is known.
struct Goal {
  bool by_mass = false;
  bool open = true;  // not yet compared with what there is
  float share = 1;
  Totals wanted;
};
QSERVE_DEVICE bool Reached(const Goal& goal, const Totals& sum) {
  return goal.by_mass ? sum.mass >= goal.wanted.mass : sum.count >= goal.wanted.count;
}

QSERVE_DEVICE uint64_t FixedMass(float x, float max) {
  return (static_cast<uint64_t>(Exponential(x - max) * 0x1p45f) + 1) >> 1;
}

namespace internal {

QSERVE_DEVICE uint64_t EntryOf(uint32_t key, int32_t id) {
  return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
}
QSERVE_DEVICE uint32_t KeyOfEntry(uint64_t entry) { return static_cast<uint32_t>(entry >> 32); }
QSERVE_DEVICE int32_t IdOfEntry(uint64_t entry) {
  return static_cast<int32_t>(~static_cast<uint32_t>(entry));
}

// Bin by distance from the maximum, 64 a unit; everything far away shares the last one. Never
// decreases as x falls.
QSERVE_DEVICE int DistanceBin(float x, float max) {
  const float distance = (max - x) * 64.0f;
  return distance < static_cast<float>(kSelectBins - 1) ? static_cast<int>(distance)
                                                        : kSelectBins - 1;
}

// The smallest key above -infinity whose bin is at most `bin`; above max's if there is none (an
// infinite max has no distances: everything is in the last bin).
QSERVE_DEVICE uint32_t LowestKeyOfBin(int bin, float max) {
  uint32_t low = kKeyOfLowest + 1, high = KeyOf(max) + 1;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (DistanceBin(ValueOf(middle), max) <= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <int kThreads>
QSERVE_DEVICE void ClearBins(SelectShared& s) {
  for (int i = ThreadId(); i < kSelectBins; i += kThreads) {
    s.counts[i] = 0;
    s.mass_low[i] = 0;
    s.mass_high[i] = 0;
  }
  if (ThreadId() == 0) s.list_size = 0;
  SyncThreads();
}

// Adds to a bin; the carry of the low words is counted exactly.
QSERVE_DEVICE void AddToBin(SelectShared& s, int bin, uint32_t count, uint64_t mass) {
  AtomicAdd(&s.counts[bin], count);
  const auto low = static_cast<uint32_t>(mass);
  auto high = static_cast<uint32_t>(mass >> 32);
  if (low != 0 && AtomicAdd(&s.mass_low[bin], low) > ~low) ++high;
  if (high != 0) AtomicAdd(&s.mass_high[bin], high);
}

// All that the block's earlier threads hold; `all`: of the whole block. Contains a barrier.
template <int kThreads>
QSERVE_DEVICE Totals SumOfEarlier(const Totals& mine, SelectShared& s, Totals* all) {
  Totals sum = mine;
  QSERVE_UNROLL
  for (int delta = 1; delta < 32; delta *= 2) {
    const uint32_t count = ShuffleUp(sum.count, delta);
    const uint32_t low = ShuffleUp(static_cast<uint32_t>(sum.mass), delta);
    const uint32_t high = ShuffleUp(static_cast<uint32_t>(sum.mass >> 32), delta);
    if (LaneId() >= delta) {
      sum.count += count;
      sum.mass += static_cast<uint64_t>(high) << 32 | low;
    }
  }
  if (LaneId() == 31) {
    s.warp_count[WarpId()] = sum.count;
    s.warp_mass[WarpId()] = sum.mass;
  }
  SyncThreads();
  Totals earlier = {sum.count - mine.count, sum.mass - mine.mass};
  *all = {};
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    if (warp < WarpId()) {
      earlier.count += s.warp_count[warp];
      earlier.mass += s.warp_mass[warp];
    }
    all->count += s.warp_count[warp];
    all->mass += s.warp_mass[warp];
  }
  return earlier;
}

// An open goal against what there is.
QSERVE_DEVICE void CloseGoal(const Totals& all, Goal& goal) {
  if (!goal.open) return;
  goal.open = false;
  if (!goal.by_mass) {
    goal.wanted.count = goal.wanted.count < all.count ? goal.wanted.count : all.count;
    return;
  }
  const double wanted = static_cast<double>(all.mass) * static_cast<double>(goal.share);
  goal.wanted.mass = static_cast<uint64_t>(wanted);
  if (static_cast<double>(goal.wanted.mass) < wanted) ++goal.wanted.mass;
  if (goal.wanted.mass > all.mass) goal.wanted.mass = all.mass;
}

// The first bin with which the goal is reached, given what lies before all bins. The bins hold it
// (an open goal is cut down to what they hold). Ends with a barrier.
template <int kThreads>
QSERVE_DEVICE FoundBin FindBin(const Totals& before, Goal& goal, SelectShared& s) {
  constexpr int kPerThread = kSelectBins / kThreads;
  const int first = ThreadId() * kPerThread;
  const auto bin_of = [&s](int i) {
    return Totals{s.counts[i], static_cast<uint64_t>(s.mass_high[i]) << 32 | s.mass_low[i]};
  };
  Totals mine;
  for (int i = first; i < first + kPerThread; ++i) {
    const Totals bin = bin_of(i);
    mine.count += bin.count;
    mine.mass += bin.mass;
  }
  if (ThreadId() == 0) s.found = {};
  Totals all;
  Totals sum = SumOfEarlier<kThreads>(mine, s, &all);
  CloseGoal(all, goal);
  sum.count += before.count;
  sum.mass += before.mass;
  const Totals end = {sum.count + mine.count, sum.mass + mine.mass};
  if (!Reached(goal, sum) && Reached(goal, end)) {
    for (int i = first; i < first + kPerThread; ++i) {
      const Totals bin = bin_of(i);
      const Totals next = {sum.count + bin.count, sum.mass + bin.mass};
      if (Reached(goal, next)) {
        s.found = {i, bin.count, sum};
        break;
      }
      sum = next;
    }
  }
  SyncThreads();
  const FoundBin found = s.found;
  SyncThreads();
  return found;
}

// Sorts the list, largest first (bitonic; padded with zeros to a power of two).
template <int kThreads>
QSERVE_DEVICE void SortList(SelectShared& s) {
  const int size = static_cast<int>(s.list_size);
  int padded = 2;
  while (padded < size) padded *= 2;
  for (int i = size + ThreadId(); i < padded; i += kThreads) s.list[i] = 0;
  SyncThreads();
  for (int run = 2; run <= padded; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
      for (int i = ThreadId(); i < padded / 2; i += kThreads) {
        const int low = 2 * i - (i & (stride - 1));
        const uint64_t a = s.list[low], b = s.list[low + stride];
        const bool descending = (low & run) == 0;
        if ((a < b) == descending) {
          s.list[low] = b;
          s.list[low + stride] = a;
        }
      }
      SyncThreads();
    }
  }
}

// Puts the ids that `wanted` says into the list, sorted. No more than kSelectBins.
template <int kThreads, class Wanted>
QSERVE_DEVICE void ListIds(const LogitRow& row, SelectShared& s, Wanted wanted) {
  if (ThreadId() == 0) s.list_size = 0;
  SyncThreads();
  VisitRow<kThreads>(row, [&](int id, float x) {
    const uint32_t key = KeyOf(x);
    if (key > kKeyOfLowest && wanted(key, id)) {
      s.list[AtomicAdd(&s.list_size, 1u)] = EntryOf(key, id);
    }
  });
  SyncThreads();
  SortList<kThreads>(s);
}

// The place in the sorted list's first `count` entries where the goal is reached.
template <int kThreads>
QSERVE_DEVICE int FindInList(int count, float max, const Totals& before, Goal& goal,
                             SelectShared& s) {
  for (int i = ThreadId(); i < kSelectBins; i += kThreads) {
    const bool there = i < count;
    const uint64_t mass =
        there && goal.by_mass ? FixedMass(ValueOf(KeyOfEntry(s.list[i])), max) : 0;
    s.counts[i] = there ? 1 : 0;
    s.mass_low[i] = static_cast<uint32_t>(mass);
    s.mass_high[i] = static_cast<uint32_t>(mass >> 32);
  }
  SyncThreads();
  return FindBin<kThreads>(before, goal, s).bin;
}

// Candidates that are left: keys and ids within bounds, `count` of them, and what comes before.
struct Range {
  uint32_t low = 0;
  uint32_t high = 0;
  int32_t first_id = 0;
  int32_t last_id = 0x7fffffff;
  uint32_t count = 0;
  Totals before;
};

// Finer bins of keys.
template <int kThreads>
QSERVE_DEVICE void NarrowByKey(const LogitRow& row, float max, const Cut& within, Goal& goal,
                               Range& range, SelectShared& s) {
  int shift = 0;
  while ((range.high - range.low) >> shift >= kSelectBins) ++shift;
  ClearBins<kThreads>(s);
  VisitRow<kThreads>(row, [&](int id, float x) {
    const uint32_t key = KeyOf(x);
    if (key < range.low || key > range.high || !Passes(within, key, id)) return;
    AddToBin(s, static_cast<int>((range.high - key) >> shift), 1,
             goal.by_mass ? FixedMass(x, max) : 0);
  });
  SyncThreads();
  const FoundBin found = FindBin<kThreads>(range.before, goal, s);
  const uint32_t width = (1u << shift) - 1;
  range.high -= static_cast<uint32_t>(found.bin) << shift;
  if (range.high - range.low > width) range.low = range.high - width;
  range.count = found.count;
  range.before = found.before;
}

// All candidates have the same key: the goal becomes a number of ids, bins are of ids.
template <int kThreads>
QSERVE_DEVICE void NarrowById(const LogitRow& row, float max, const Cut& within, Goal& goal,
                              Range& range, SelectShared& s) {
  if (goal.by_mass) {
    const uint64_t one = FixedMass(ValueOf(range.high), max);
    const uint64_t missing = goal.wanted.mass - range.before.mass;
    goal.wanted.count = static_cast<uint32_t>((missing + one - 1) / one);
  } else {
    goal.wanted.count -= range.before.count;
  }
  goal.by_mass = false;
  int shift = 0;
  while (row.count >> shift >= kSelectBins) ++shift;
  ClearBins<kThreads>(s);
  VisitRow<kThreads>(row, [&](int id, float x) {
    if (KeyOf(x) == range.high && Passes(within, range.high, id)) AddToBin(s, id >> shift, 1, 0);
  });
  SyncThreads();
  const FoundBin found = FindBin<kThreads>({}, goal, s);
  range.first_id = found.bin << shift;
  range.last_id = range.first_id + (1 << shift) - 1;
  range.count = found.count;
  range.before = found.before;
}

}  // namespace internal

// What a selection found. If `listed`, the list holds all ids up to the cut and maybe more, most
// likely first, and the cut's is number `place`.
struct Selection {
  Cut cut;
  bool listed = false;
  int place = 0;
};

// Where the ids that pass `within` reach the goal; fewer than asked for end with the last one above
// -infinity. There is one. `max` is the row's largest value.
template <int kThreads>
QSERVE_DEVICE Selection Select(const LogitRow& row, float max, const Cut& within, Goal goal,
                               SelectShared& s) {
  internal::ClearBins<kThreads>(s);
  Totals far;  // those of the last bin, which may be most of the vocabulary
  VisitRow<kThreads>(row, [&](int id, float x) {
    const uint32_t key = KeyOf(x);
    if (key <= kKeyOfLowest || !Passes(within, key, id)) return;
    const int bin = internal::DistanceBin(x, max);
    const uint64_t mass = goal.by_mass ? FixedMass(x, max) : 0;
    if (bin == kSelectBins - 1) {
      ++far.count;
      far.mass += mass;
    } else {
      internal::AddToBin(s, bin, 1, mass);
    }
  });
  if (far.count > 0) internal::AddToBin(s, kSelectBins - 1, far.count, far.mass);
  SyncThreads();
  const FoundBin found = internal::FindBin<kThreads>({}, goal, s);
  internal::Range range;
  range.low = internal::LowestKeyOfBin(found.bin, max);
  range.high = KeyOf(max);
  Selection selection;
  selection.listed = found.before.count + found.count <= kSelectBins;
  if (!selection.listed) {
    range.count = found.count;
    range.before = found.before;
    if (found.bin > 0) range.high = internal::LowestKeyOfBin(found.bin - 1, max) - 1;
    while (range.count > kSelectBins && range.low < range.high) {
      internal::NarrowByKey<kThreads>(row, max, within, goal, range, s);
    }
    if (range.count > kSelectBins) {
      internal::NarrowById<kThreads>(row, max, within, goal, range, s);
    }
  }
  internal::ListIds<kThreads>(row, s, [&](uint32_t key, int id) {
    return key >= range.low && key <= range.high && id >= range.first_id && id <= range.last_id &&
           Passes(within, key, id);
  });
  selection.place =
      internal::FindInList<kThreads>(static_cast<int>(s.list_size), max, range.before, goal, s);
  const uint64_t entry = s.list[selection.place];
  selection.cut = {internal::KeyOfEntry(entry), internal::IdOfEntry(entry)};
  return selection;
}

}  // namespace qserve::kernels::cuda
