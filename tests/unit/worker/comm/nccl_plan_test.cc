// How a sum over ranks is cut: every element in exactly one piece and one part, and nothing beyond
// the workspace.
#include "worker/comm/nccl_plan.h"

#include <gtest/gtest.h>

namespace qserve::worker::comm {
namespace {

TEST(NcclPlan, PartsCoverEveryElementOnceAndAreAligned) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const int64_t count : {1, 7, 8, 9, 63, 64, 65, 100, 4096, 4097, 100'003}) {
      int64_t next = 0;
      for (int part = 0; part < ranks; ++part) {
        const Part p = PartOf(count, ranks, part);
        EXPECT_EQ(p.first, next);
        EXPECT_GE(p.count, 0);
        EXPECT_LE(p.count, PartOf(count, ranks, 0).count);
        EXPECT_TRUE(p.count == 0 || p.first % 8 == 0);
        next += p.count;
      }
      EXPECT_EQ(next, count) << ranks;
    }
  }
  EXPECT_TRUE(EvenParts(4096, 4));
  EXPECT_FALSE(EvenParts(4095, 4));
  EXPECT_FALSE(EvenParts(4, 2));
}

TEST(NcclPlan, PiecesCoverEveryRowOnceWithinTheWorkspace) {
  for (const int ranks : {1, 2, 3, 8}) {
    for (const bool contiguous : {false, true}) {
      for (const int64_t rows : {1, 5, 64, 1000}) {
        for (const int64_t cols : {1, 96, 4096}) {
          const int64_t workspace = 40'000;
          const auto pieces = PlanSum({.rows = rows,
                                       .cols = cols,
                                       .contiguous = contiguous,
                                       .ranks = ranks,
                                       .one_shot_floats = 5000,
                                       .workspace_floats = workspace});
          ASSERT_TRUE(pieces.ok()) << pieces.status();
          int64_t next = 0;
          for (const SumPiece& piece : *pieces) {
            EXPECT_EQ(piece.first_row, next);
            EXPECT_GT(piece.rows, 0);
            next += piece.rows;
            EXPECT_EQ(piece.parted, contiguous && ranks > 1 && rows * cols > 5000);
            const int64_t count = piece.rows * cols;
            const int64_t arrives =
                piece.parted ? ranks * PartOf(count, ranks, 0).count : ranks * count;
            EXPECT_LE(arrives, workspace);
          }
          EXPECT_EQ(next, rows);
        }
      }
    }
  }
}

TEST(NcclPlan, ARowThatDoesNotFitIsRefused) {
  const auto pieces = PlanSum(
      {.rows = 1, .cols = 1000, .ranks = 8, .one_shot_floats = 5000, .workspace_floats = 7999});
  EXPECT_TRUE(absl::IsInvalidArgument(pieces.status())) << pieces.status();
  EXPECT_TRUE(PlanSum({.rows = 0, .cols = 1000, .ranks = 8})->empty());
}

}  // namespace
}  // namespace qserve::worker::comm
