// How a sum over ranks is cut into NCCL's messages: pure arithmetic, the same on every rank, tested
// without a GPU. Used by nccl_communicator.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::worker::comm {

// A run of whole rows of the matrix, summed on its own. The bits do not depend on the cut: every
// element is added rank after rank whatever it travels with.
struct SumPiece {
  int64_t first_row = 0;
  int64_t rows = 0;
  // One shot: everybody's rows to everybody, and each adds for itself. Parted: rank p gets part p
  // of everybody, adds it and sends the sum to all.
  bool parted = false;
};

struct SumShape {
  int64_t rows = 0;
  int64_t cols = 0;
  bool contiguous = true;  // partial and sum; parted sums need it
  int ranks = 1;
  int64_t one_shot_floats = 0;   // a message of at most this many floats goes in one shot
  int64_t workspace_floats = 0;  // for what arrives
};

// InvalidArgument when one row of every rank does not fit into the workspace.
absl::StatusOr<std::vector<SumPiece>> PlanSum(const SumShape& shape);

// Part `part` of `count` elements: [first, first + count). Parts begin at multiples of eight
// elements, so that all but the last are aligned; some may be empty.
struct Part {
  int64_t first = 0;
  int64_t count = 0;
};
Part PartOf(int64_t count, int ranks, int part);
// True if all parts have the same size.
bool EvenParts(int64_t count, int ranks);

// Rows of [rows, cols] matrices, one of each of `senders` ranks, that fit into the workspace at
// once; 0: none.
int64_t RowsThatFit(int64_t cols, int senders, int64_t workspace_floats);

}  // namespace qserve::worker::comm
