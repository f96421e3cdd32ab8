// The matrices of the quantizer: row-major, a row an output channel or a token. Owned by whoever
// holds them; no threads. Products of large ones go through the device (calibration/device_math.h).
#pragma once

#include <Eigen/Core>

namespace qserve::quantizer {

using MatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using VectorF = Eigen::VectorXf;
using VectorD = Eigen::VectorXd;

}  // namespace qserve::quantizer
