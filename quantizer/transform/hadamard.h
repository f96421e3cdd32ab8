// Orthogonal matrices of entries +-1 / sqrt(n), possibly with random signs: what spreads outliers
// evenly over channels. Any n = 2^k m where a Hadamard matrix of order m, or of order 4 m, 8 m, ...
// comes from Paley's two constructions over the fields of q and q^2 elements (m = 1, 3, 5, 7, 9,
// 11, 13, 15, ...; of the small ones 23 and 29 have none). Constant after Create, any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "quantizer/block/matrix.h"

namespace qserve::quantizer::transform {

class Hadamard {
 public:
  // R = D H / sqrt(n): H the Kronecker product of a small matrix and Sylvester's, D diagonal of
  // signs drawn from `seed` (0: all plus). InvalidArgument where no such H is known to us.
  static absl::StatusOr<Hadamard> Create(int64_t n, uint64_t seed);

  int64_t size() const { return n_; }

  // x <- x R for a row vector of n numbers. O(n log n + n m).
  void Apply(double* x) const;

  // Every row of `m` (columns: whole multiples of n, each piece by itself) times R, in fp64.
  void ApplyToRows(MatrixF& m, int threads) const;
  // R^T times the matrix: every column likewise. What a linear's output rows need.
  void ApplyToColumns(MatrixF& m, int threads) const;
  void ApplyToVector(VectorF& v) const;

 private:
  Hadamard(int64_t n, int64_t small, std::vector<int8_t> matrix, std::vector<int8_t> signs);

  int64_t n_;
  int64_t small_;               // order of the small matrix
  std::vector<int8_t> matrix_;  // [small][small], entries +-1
  std::vector<int8_t> signs_;   // [n]
};

// The +-1 matrix [m][m] of order m from Paley's constructions, empty if they give none. m = 1 is
// {1}.
std::vector<int8_t> PaleyHadamard(int64_t m);

}  // namespace qserve::quantizer::transform
