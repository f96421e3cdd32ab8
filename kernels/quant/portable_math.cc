// Elementary functions in double by their series, see portable_math.h. Compiled without contraction
// into fused operations.
#include "kernels/quant/portable_math.h"

#include <bit>

namespace qserve::kernels {
namespace {

// ln 2 and pi / 2 in parts; the leading ones have few bits, so that products with small integers
// are exact.
constexpr double kLn2Hi = 0x1.62e42fee00000p-1;
constexpr double kLn2Lo = 0x1.a39ef35793c76p-33;
constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1;
constexpr double kHalfPi1 = 0x1.921fb54400000p+0;  // 33 bits each, then the rest
constexpr double kHalfPi2 = 0x1.0b4611a600000p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;

double PowerOfTwo(int64_t n) {
  return std::bit_cast<double>(static_cast<uint64_t>(n + 1023) << 52);
}

// (-1)^k / (first (first + 1) ... (first + 2k - 1)): the series in x^2 of cos x for first = 1, of
// sin(x) / x for first = 2.
struct Series {
  static constexpr int kTerms = 11;  // |x| <= pi / 4, so what is left out is below 1e-20
  double term[kTerms] = {1};
  constexpr explicit Series(int first) {
    for (int k = 1; k < kTerms; ++k) {
      term[k] = -term[k - 1] /
                (static_cast<double>(first + 2 * k - 2) * static_cast<double>(first + 2 * k - 1));
    }
  }
  double At(double x2) const {
    double sum = term[kTerms - 1];
    for (int k = kTerms - 2; k >= 0; --k) sum = sum * x2 + term[k];
    return sum;
  }
};
constexpr Series kCosine(1);
constexpr Series kSineOverX(2);

}  // namespace

double PortableLog(double x) {
  int64_t exponent = 0;
  uint64_t bits = std::bit_cast<uint64_t>(x);
  if (bits < (uint64_t{1} << 52)) {  // subnormal
    bits = std::bit_cast<uint64_t>(x * 0x1p54);
    exponent = -54;
  }
  exponent += static_cast<int64_t>(bits >> 52) - 1022;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | (uint64_t{1022} << 52));  // [1/2, 1)
  if (m < kSqrtHalf) {
    m *= 2;
    --exponent;
  }
  const double s = (m - 1) / (m + 1);  // log m = 2 atanh s, |s| < 0.172
  const double s2 = s * s;
  double sum = 0;
  for (int k = 25; k >= 3; k -= 2) sum = (sum + 1.0 / static_cast<double>(k)) * s2;
  const auto e = static_cast<double>(exponent);
  return e * kLn2Hi + (2 * s + (2 * s * sum + e * kLn2Lo));
}

double PortableExp(double x) {
  const double scaled = x * 1.4426950408889634;
  const auto n = static_cast<int64_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
  const auto e = static_cast<double>(n);
  const double r = (x - e * kLn2Hi) - e * kLn2Lo;  // |r| < 0.35
  double sum = 1;
  for (int k = 16; k >= 1; --k) sum = 1 + r / static_cast<double>(k) * sum;
  return sum * PowerOfTwo(n);
}

double PortablePow(double base, double exponent) {
  return PortableExp(exponent * PortableLog(base));
}

SinCos PortableSinCos(double angle) {
  const auto quarter = static_cast<int64_t>(angle * kTwoOverPi + 0.5);
  const auto n = static_cast<double>(quarter);
  // Below 2^24 quarters have 24 bits, and the products with the first two parts at most 57: split
  // once more for exactness.
  const double high = static_cast<double>(quarter & ~int64_t{0xfff});
  const double low = n - high;
  double r = angle - high * kHalfPi1;
  r = r - low * kHalfPi1;
  r = r - high * kHalfPi2;
  r = r - low * kHalfPi2;
  r = r - n * kHalfPi3;
  const double sine = r * kSineOverX.At(r * r);
  const double cosine = kCosine.At(r * r);
  switch (quarter & 3) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

}  // namespace qserve::kernels
