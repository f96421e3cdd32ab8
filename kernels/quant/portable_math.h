// exp, log, sin and cos in double from additions, multiplications and divisions alone, so that
// their bits do not depend on the C library. Relative error below 1e-15 (sin and cos: absolute) in
// the ranges given. For tables made at load; not fast.
#pragma once

#include <cstdint>

namespace qserve::kernels {

// Natural logarithm of a positive finite x.
double PortableLog(double x);
// exp(x), |x| < 700.
double PortableExp(double x);
// base^exponent for positive base: exp(exponent * log(base)); error grows with |exponent *
// log(base)|, about 2e-16 each.
double PortablePow(double base, double exponent);

struct SinCos {
  double sin = 0;
  double cos = 0;
};
// 0 <= angle < 2^24.
SinCos PortableSinCos(double angle);

}  // namespace qserve::kernels
