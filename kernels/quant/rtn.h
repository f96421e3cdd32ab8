// Round-to-nearest quantization of one linear's weights into each integer format. Called by the
// quantizer, by `--quantize rtn-*` and for the int8 and int4 lm_head at load. Pure functions of the
// rows: any slice of rows gives the same codes as the whole. Any thread.
//
// Scales that are stored as fp16 are rounded before the codes are computed, so that codes fit the
// scales that are read back. Ranges always hold 0, because zero points are codes 0-15: a row of
// equal weights would not be representable otherwise. `weights` is [n][k], row-major.
// InvalidArgument if a weight is not finite or a scale does not fit fp16.
#pragma once

#include <cstdint>

#include "kernels/quant/linear_weight.h"

namespace qserve::kernels {

// Largest magnitude of level 1 of g128: any larger, and a level-2 rounding can leave int8 (119 + 16
// / 2 = 127).
inline constexpr float kProtectedRange = 119.0f;

// kW4Group128: scale = fp16(max |w| / 119); w8 = clamp(w / scale, -119, 119), not rounded; per 128
// columns group_scale = max(1, round((max w8 - min w8) / 15)), zero = clamp(round(-min w8 /
// group_scale), 0, 15), code = clamp(round(w8 / group_scale) + zero, 0, 15), group_offset = -zero *
// group_scale. Also the int4 lm_head: its error goes straight into the logits, and groups cost 5 %
// more bytes than per-channel scales.
StatusOr<LinearWeight> RtnGroup128(const float* weights, int64_t n, int64_t k);

// kW4PerChannel: scale = fp16((max w - min w) / 15), zero = clamp(round(-min w / scale), 0, 15),
// scaled_zero = fp16(zero * scale), code = clamp(round((w + scaled_zero) / scale), 0, 15).
StatusOr<LinearWeight> RtnPerChannel(const float* weights, int64_t n, int64_t k);

// kW8: scale = max |w| / 127 in fp32 (it is made at load and never stored), code = clamp(round(w /
// scale), -127, 127).
StatusOr<LinearWeight> RtnInt8PerRow(const float* weights, int64_t n, int64_t k);

}  // namespace qserve::kernels
