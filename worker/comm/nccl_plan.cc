#include "worker/comm/nccl_plan.h"

#include <algorithm>

#include <fmt/format.h>

namespace qserve::worker::comm {
namespace {

constexpr int64_t kPartAlignment = 8;

int64_t PartSize(int64_t count, int ranks) {
  const int64_t units = (count + kPartAlignment - 1) / kPartAlignment;
  return (units + ranks - 1) / ranks * kPartAlignment;
}

}  // namespace

Part PartOf(int64_t count, int ranks, int part) {
  const int64_t size = PartSize(count, ranks);
  const int64_t first = std::min(part * size, count);
  return {first, std::min(size, count - first)};
}

bool EvenParts(int64_t count, int ranks) { return PartSize(count, ranks) * ranks == count; }

int64_t RowsThatFit(int64_t cols, int senders, int64_t workspace_floats) {
  return workspace_floats / std::max<int64_t>(senders, 1) / std::max<int64_t>(cols, 1);
}

absl::StatusOr<std::vector<SumPiece>> PlanSum(const SumShape& shape) {
  std::vector<SumPiece> pieces;
  if (shape.rows == 0 || shape.cols == 0) return pieces;
  const bool parted =
      shape.contiguous && shape.ranks > 1 && shape.rows * shape.cols > shape.one_shot_floats;
  // Parted, what arrives is one part of every rank: about one whole piece.
  const int64_t slack = parted ? shape.ranks * kPartAlignment : 0;
  const int64_t rows =
      RowsThatFit(shape.cols, parted ? 1 : shape.ranks, shape.workspace_floats - slack);
  if (rows <= 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} columns of {} ranks do not fit into a workspace of {} floats", shape.cols,
                    shape.ranks, shape.workspace_floats));
  }
  for (int64_t first = 0; first < shape.rows; first += rows) {
    pieces.push_back({first, std::min(rows, shape.rows - first), parted});
  }
  return pieces;
}

}  // namespace qserve::worker::comm
