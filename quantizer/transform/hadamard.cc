// See hadamard.h. Paley, "On orthogonal matrices" (1933): with Q the Jacobsthal matrix of the field
// of q elements, Q[a][b] = chi(a - b), chi the quadratic character,
//   I,  q = 3 mod 4: H = I + S of order q + 1, S = [0, 1; -1^T, Q];
//   II, q = 1 mod 4: H of order 2 (q + 1), every 0 of [0, 1; 1^T, Q] replaced by [1, -1; -1, -1]
//       and every +-1 by +-[1, 1; 1, -1].
#include "quantizer/transform/hadamard.h"

#include <fmt/format.h>

#include <cmath>

#include "common/philox.h"
#include "quantizer/block/parallel.h"

namespace qserve::quantizer::transform {
namespace {

constexpr int64_t kLargestSmall = 512;  // order of the small matrix
constexpr int64_t kPieceRows = 32;

bool IsPrime(int64_t p) {
  if (p < 2) return false;
  for (int64_t d = 2; d * d <= p; ++d) {
    if (p % d == 0) return false;
  }
  return true;
}

// The field of p or p^2 elements; element a + b root of the second kind is a + b p.
struct Field {
  int64_t p = 0;
  int64_t q = 0;
  int64_t root_square = 0;  // a non-residue of p, where q = p^2

  int64_t Subtract(int64_t x, int64_t y) const {
    return (x % p - y % p + p) % p + (x / p - y / p + p) % p * p;
  }
  int64_t Square(int64_t x) const {
    const int64_t a = x % p, b = x / p;
    return (a * a + b * b % p * root_square) % p + 2 * a * b % p * p;
  }
};

// Nothing but a prime or the square of an odd one has a field here.
bool MakeField(int64_t q, Field& field) {
  if (q < 3) return false;
  if (IsPrime(q)) {
    field = {q, q, 0};
    return true;
  }
  const auto p = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(q))));
  if (p * p != q || p == 2 || !IsPrime(p)) return false;
  std::vector<bool> square(static_cast<size_t>(p));
  for (int64_t x = 0; x < p; ++x) square[static_cast<size_t>(x * x % p)] = true;
  int64_t root = 2;
  while (square[static_cast<size_t>(root)]) ++root;
  field = {p, q, root};
  return true;
}

// chi of every element: 0, 1 for squares, -1 for the others.
std::vector<int8_t> QuadraticCharacter(const Field& field) {
  std::vector<int8_t> chi(static_cast<size_t>(field.q), -1);
  for (int64_t x = 1; x < field.q; ++x) chi[static_cast<size_t>(field.Square(x))] = 1;
  chi[0] = 0;
  return chi;
}

// [0, 1; sign 1^T, Q] of order q + 1.
std::vector<int8_t> Bordered(const Field& field, int8_t sign) {
  const std::vector<int8_t> chi = QuadraticCharacter(field);
  const int64_t order = field.q + 1;
  std::vector<int8_t> s(static_cast<size_t>(order * order), 0);
  for (int64_t i = 1; i < order; ++i) {
    s[static_cast<size_t>(i)] = 1;
    s[static_cast<size_t>(i * order)] = sign;
    for (int64_t j = 1; j < order; ++j) {
      s[static_cast<size_t>(i * order + j)] =
          chi[static_cast<size_t>(field.Subtract(i - 1, j - 1))];
    }
  }
  return s;
}

std::vector<int8_t> PaleyOne(const Field& field) {
  std::vector<int8_t> h = Bordered(field, -1);
  for (int64_t i = 0; i <= field.q; ++i) h[static_cast<size_t>(i * (field.q + 2))] = 1;
  return h;
}

std::vector<int8_t> PaleyTwo(const Field& field) {
  const std::vector<int8_t> s = Bordered(field, 1);
  const int64_t order = field.q + 1;
  constexpr int8_t kZero[4] = {1, -1, -1, -1}, kOne[4] = {1, 1, 1, -1};
  std::vector<int8_t> h(static_cast<size_t>(4 * order * order));
  for (int64_t i = 0; i < 2 * order; ++i) {
    for (int64_t j = 0; j < 2 * order; ++j) {
      const int8_t entry = s[static_cast<size_t>(i / 2 * order + j / 2)];
      const auto corner = static_cast<size_t>(i % 2 * 2 + j % 2);
      h[static_cast<size_t>(i * 2 * order + j)] =
          entry == 0 ? kZero[corner] : static_cast<int8_t>(entry * kOne[corner]);
    }
  }
  return h;
}

}  // namespace

std::vector<int8_t> PaleyHadamard(int64_t m) {
  if (m == 1) return {1};
  Field field;
  if (m % 4 != 0) return {};
  if (MakeField(m - 1, field) && field.q % 4 == 3) return PaleyOne(field);
  if (MakeField(m / 2 - 1, field) && field.q % 4 == 1) return PaleyTwo(field);
  return {};
}

absl::StatusOr<Hadamard> Hadamard::Create(int64_t n, uint64_t seed) {
  if (n < 1) return absl::InvalidArgumentError(fmt::format("a Hadamard matrix of order {}", n));
  int64_t odd = n;
  while (odd % 2 == 0) odd /= 2;
  std::vector<int8_t> matrix;
  int64_t small = odd;
  for (; small <= n && small <= kLargestSmall && matrix.empty(); small *= 2) {
    matrix = PaleyHadamard(small);
    if (!matrix.empty()) break;
  }
  if (matrix.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("no Hadamard matrix of order {} is known here: switch the rotation off", n));
  }
  std::vector<int8_t> signs(static_cast<size_t>(n), 1);
  for (int64_t i = 0; seed != 0 && i < n; ++i) {
    const PhiloxBlock bits =
        Philox4x32({static_cast<uint32_t>(i), 0, 0, 0},
                   {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    if ((bits[0] & 1u) != 0) signs[static_cast<size_t>(i)] = -1;
  }
  return Hadamard(n, small, std::move(matrix), std::move(signs));
}

Hadamard::Hadamard(int64_t n, int64_t small, std::vector<int8_t> matrix, std::vector<int8_t> signs)
    : n_(n), small_(small), matrix_(std::move(matrix)), signs_(std::move(signs)) {}

void Hadamard::Apply(double* x) const {
  const int64_t run = n_ / small_;  // of Sylvester's matrix
  const double scale = 1 / std::sqrt(static_cast<double>(n_));
  for (int64_t i = 0; i < n_; ++i) x[i] *= signs_[static_cast<size_t>(i)] * scale;
  for (int64_t half = 1; half < run; half *= 2) {
    for (int64_t begin = 0; begin < n_; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  if (small_ == 1) return;
  std::vector<double> column(static_cast<size_t>(small_));
  for (int64_t at = 0; at < run; ++at) {
    for (int64_t j = 0; j < small_; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < small_; ++i)
        sum += x[i * run + at] * matrix_[static_cast<size_t>(i * small_ + j)];
      column[static_cast<size_t>(j)] = sum;
    }
    for (int64_t j = 0; j < small_; ++j) x[j * run + at] = column[static_cast<size_t>(j)];
  }
}

void Hadamard::ApplyToRows(MatrixF& m, int threads) const {
  ParallelFor(threads, (m.rows() + kPieceRows - 1) / kPieceRows, [&](int64_t piece) {
    const int64_t end = std::min((piece + 1) * kPieceRows, static_cast<int64_t>(m.rows()));
    std::vector<double> row(static_cast<size_t>(n_));
    for (int64_t r = piece * kPieceRows; r < end; ++r) {
      for (int64_t begin = 0; begin < m.cols(); begin += n_) {
        float* const values = m.row(r).data() + begin;
        std::copy(values, values + n_, row.begin());
        Apply(row.data());
        for (int64_t i = 0; i < n_; ++i)
          values[i] = static_cast<float>(row[static_cast<size_t>(i)]);
      }
    }
  });
}

void Hadamard::ApplyToColumns(MatrixF& m, int threads) const {
  MatrixF transposed = m.transpose();
  ApplyToRows(transposed, threads);
  m = transposed.transpose();
}

void Hadamard::ApplyToVector(VectorF& v) const {
  MatrixF row = v.transpose();
  ApplyToRows(row, 1);
  v = row.transpose();
}

}  // namespace qserve::quantizer::transform
